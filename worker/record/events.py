"""The events of an attempt's history, written by the journal and read by reports.

Events are not validated when they are written, only when they are read back, against bounds within
which they can be plotted. Non-finite numbers are written as null.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from worker.checkpoint.commit import MAX_STEPS
from worker.manifest.training import Metric

_MAX_TIME = 1e11  # seconds: the year 5138, which `time.localtime` can still represent

StepCount = Annotated[int, Field(ge=0, le=MAX_STEPS)]
Time = Annotated[float, Field(ge=0, le=_MAX_TIME)]
"""Unix time, in seconds."""
Real = Annotated[float, Field(ge=-1e30, le=1e30)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=100_000)]


@dataclass(frozen=True, kw_only=True)
class _Event:
    __pydantic_config__ = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    time: Time = field(default_factory=lambda: round(time.time(), 3))
    """When it happened."""


@dataclass(frozen=True, kw_only=True)
class StartEvent(_Event):
    """The start of an attempt."""

    event: Literal["start"] = "start"
    attempt: Annotated[int, Field(ge=1)]
    """The number of the attempt."""
    step: StepCount
    """The step from which it resumes; 0 for a fresh start."""
    world_size: Annotated[int, Field(ge=1)]
    """The number of ranks."""


@dataclass(frozen=True, kw_only=True)
class StepEvent(_Event):
    """A report on the steps since the last report."""

    event: Literal["step"] = "step"
    step: StepCount
    epoch: StepCount
    """The epoch of the step, from 1."""
    loss: Real | None
    """Mean training loss; None if all steps were skipped."""
    accuracy: Share | None
    """Training accuracy; None if all steps were skipped."""
    images_per_second: Real
    wait_ratio: Real
    """Share of the time spent waiting for images, on the rank that waited most."""
    rates: Mapping[str, Real]
    """Learning rates, by group."""
    gradient_norms: Mapping[str, Real | None]
    """Gradient norms of the last step, by group; only for groups that it trained."""
    images: Annotated[int, Field(ge=0)] = 0
    """Images that this attempt has trained on."""
    joules: Annotated[float, Field(ge=0, le=1e30)] | None = None
    """Energy of all GPUs since the attempt began; None if it is not counted."""


@dataclass(frozen=True, kw_only=True)
class CommitEvent(_Event):
    """A checkpoint that was committed."""

    event: Literal["commit"] = "commit"
    step: StepCount
    seconds: Real
    """Time from the start of the save to its commit."""
    bytes: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class SkippedEvent(_Event):
    """A step that was skipped because its gradient was not finite."""

    event: Literal["skipped"] = "skipped"
    step: StepCount


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent(_Event):
    """An evaluation on the validation set."""

    event: Literal["evaluation"] = "evaluation"
    epoch: StepCount
    """The number of epochs completed."""
    step: StepCount
    loss: Real | None
    """Mean loss; None if it is not finite."""
    accuracy: Share
    top5_accuracy: Share | None
    """Top-5 accuracy; None for five classes or fewer."""
    metric: Metric = "accuracy"
    """The figure that decides which weights are best."""
    value: Real | None = None
    """Its value; None if it is undefined."""
    low: Real | None = None
    """Lower limit of its 95% interval."""
    high: Real | None = None
    """Upper limit of its 95% interval."""
    best: Real | None = None
    """Its best value so far, this evaluation included."""


@dataclass(frozen=True, kw_only=True)
class EndEvent(_Event):
    """The end of an attempt."""

    event: Literal["end"] = "end"
    code: int
    """Its exit code."""
    text: Text
    """The reason for the end; empty if the job is complete."""
    diverged: bool = False
    """Whether it ended because the loss was no longer finite."""


Event = StartEvent | StepEvent | CommitEvent | SkippedEvent | EvaluationEvent | EndEvent

_LINE: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse_event(line: bytes) -> Event:
    """Return the event in a line of a history. Raises `ValueError` for anything else."""
    return _LINE.validate_json(line)
