"""The manifest of a sweep: what is varied, how often, and what counts as best."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints, model_validator

from worker.errors import ConfigurationError
from worker.manifest.base import Count, Section, Text
from worker.manifest.load import check_section, parse_mapping, read_manifest
from worker.manifest.training import Metric

_Number = int | Annotated[float, Field(allow_inf_nan=False)]
_Bounds = tuple[_Number, _Number]
REPEATS = ("train.seed", "data.fold.hold")
"""Settings whose values repeat a trial; all others are choices between trials."""
_FIXED = (
    "version",
    "job",
    "output",
    "train.epochs",
    "train.metric",
    "final",
    "checkpoint",
    "record",
)
"""Settings that a sweep sets itself, or that the comparison of trials does not depend on."""


class Vary(Section):
    """The values of one setting."""

    log: _Bounds | None = None
    """Lowest and highest value, drawn evenly on a logarithmic scale; two integers give integers."""
    linear: _Bounds | None = None
    """Lowest and highest value, drawn evenly; two integers give integers."""
    each: Annotated[tuple[JsonValue, ...], Field(min_length=1, max_length=1000)] | None = None
    """Values that are all tried with every draw."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Vary":
        if sum(value is not None for value in (self.log, self.linear, self.each)) != 1:
            raise ValueError("set exactly one of log, linear and each")
        low, high = self.bounds or (0, 1)
        if not low < high:
            raise ValueError("must be [lowest, highest] with lowest < highest")
        if self.log and low <= 0:
            raise ValueError("a logarithmic range must start above 0")
        try:
            texts = [
                json.dumps(value, sort_keys=True, allow_nan=False) for value in self.each or ()
            ]
        except ValueError:
            raise ValueError("each: a value is not a finite number; correct it") from None
        if len(set(texts)) < len(texts):
            raise ValueError("each: a value is listed twice; remove one")
        return self

    @property
    def bounds(self) -> _Bounds | None:
        """The ends of the range, if it is one."""
        return self.log or self.linear


class First(Section):
    """The first rung of halving."""

    epochs: Count
    """Epochs after which the trials are compared for the first time."""


class Halving(Section):
    """Successive halving (Jamieson and Talwalkar, 2016): most trials end after a few epochs.

    Those that survive resume exactly where they stopped, with the schedule of the whole job.
    """

    first: First
    """When the trials are compared for the first time."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the trials that survive a comparison; the epochs up to the next one grow by its
    inverse."""


class Goal(Section):
    """The figure on the validation set that trials are compared by; it sets `train.metric`."""

    max: Literal["accuracy", "balanced_accuracy", "macro_f1", "macro_auroc"] | None = None
    """The figure, if the highest value is best."""
    min: Literal["loss"] | None = None
    """The figure, if the lowest value is best."""

    @model_validator(mode="after")
    def _one_figure(self) -> "Goal":
        if (self.max is None) == (self.min is None):
            raise ValueError("set either max or min")
        return self

    @property
    def metric(self) -> Metric:
        """The figure."""
        return self.max or self.min or "accuracy"


class SweepManifest(Section):
    """A sweep."""

    version: Literal[1]
    """Version of the format: `1`."""
    sweep: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$")]
    """Name, at most 48 lowercase letters, digits and dashes; the jobs are named after it."""
    output: Text
    """Prefix below which the sweep writes everything, its trials included."""
    base: Text
    """Address of the job manifest whose settings are varied; its `job` and `output` are not
    used."""
    vary: Annotated[dict[Text, Vary], Field(min_length=1, max_length=50)]
    """The values of each setting, by its path, such as `optimizer.lr`; a group of rates is part of
    the path by its name (`optimizer.groups.backbone.scale`). The values of `train.seed` and
    `data.fold.hold` repeat every trial, which is then judged by its mean."""
    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Number of draws from the ranges; each is combined with every value of `each`. Required if
    there is a range."""
    halving: Halving | None = None
    """When trials are compared and given up; if not set, all run to the end."""
    goal: Goal
    """What is best."""

    @model_validator(mode="after")
    def _counted(self) -> "SweepManifest":
        ranges = any(vary.bounds for vary in self.vary.values())
        if ranges and self.trials is None:
            raise ValueError("trials: missing; set the number of draws from the ranges")
        if not ranges and self.trials is not None:
            raise ValueError("trials: nothing is drawn, as `each` lists all values; remove it")
        for path in self.vary:
            fixed = next((f for f in _FIXED if f"{path}.".startswith(f"{f}.")), None)
            if fixed:
                raise ValueError(f"vary.{path}: {fixed} is the same for all trials; set it in base")
            outer = next((other for other in self.vary if path.startswith(f"{other}.")), None)
            if outer:
                raise ValueError(f"vary.{path}: is a part of {outer}, which is varied as well")
        repeated = [path for path in REPEATS if path in self.vary and self.vary[path].bounds]
        if repeated:
            raise ValueError(f"vary.{repeated[0]}: repeats every trial; list its values with each")
        return self


def load_sweep(uri: str) -> SweepManifest:
    """Read and validate the manifest of a sweep.

    Raises `ConfigurationError` with one line per mistake, each naming its field.
    """
    data: dict[Any, Any] = parse_mapping(read_manifest(uri), uri)
    if {"job", "model"} <= data.keys():
        raise ConfigurationError(
            f"sweep {uri}: is the manifest of a job; use `worker train`, or make it the base of a "
            "sweep"
        )
    return check_section(data, f"sweep {uri}", SweepManifest)
