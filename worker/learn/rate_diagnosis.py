"""The diagnosis of the rates of each group and block from gradients, in figures and in words.

All functions are pure.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worker.charts import bar, table
from worker.learn.gradient_signal import GradientSums
from worker.manifest import Optimizer

SIGNAL = 0.05
"""The share of signal from which a block counts as having any: in trials with eight batches, blocks
without signal stayed below it."""
_FIRST = 1 / 3  # of the blocks, by depth
_CLEAR = 2.0  # times as much signal


@dataclass(frozen=True, kw_only=True)
class DiagnosedPart:
    """A group or a block, under the rate that the manifest gives it."""

    name: str
    parameters: int
    rate: float
    """Peak learning rate; 0 if it is never trained."""
    relative_norm: float
    """Norm of a batch's gradient over that of the parameters."""
    signal: float
    """Share of the squared gradient that is signal, from 0 to 1."""
    relative_step: float
    """Norm of an update at that rate over that of the parameters."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The diagnosis of a job."""

    batches: int
    """Number of batches that it was made with."""
    head_first: bool
    """Whether the head was trained before."""
    groups: tuple[DiagnosedPart, ...]
    blocks: tuple[DiagnosedPart, ...]
    """From the input to the head."""

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON data, with what it says in words."""
        return {**asdict(self), "findings": findings(self)}


def relative_step(sums: GradientSums, rate: float, optimizer: Optimizer) -> float:
    """Return the norm of one update over that of the weights.

    Adam moves every weight by about its rate. SGD moves along the gradient and, with momentum m,
    about 1 / (1 - m) times as far in the long run.

    Args:
        sums: The gradient sums.
        rate: The learning rate.
        optimizer: The optimizer section of the manifest.
    """
    if not sums.weight_norm:
        return 0.0
    if optimizer.name == "sgd":
        momentum = 0.9 if optimizer.momentum is None else optimizer.momentum
        return rate * sums.relative_norm / (1 - momentum)
    return rate * math.sqrt(sums.parameters) / sums.weight_norm


def findings(diagnosis: Diagnosis) -> list[str]:
    """Return what the figures clearly say; nothing if they say nothing clear."""
    *body, head = diagnosis.blocks
    if not diagnosis.head_first:
        return [
            "the head is new: its gradient hides what the other blocks need, so this says little "
            "about them"
        ]
    silent = _last_run([block.signal < SIGNAL for block in body])
    loud = [block for block in body if block.signal >= SIGNAL]
    found = []
    if not loud:
        found.append(
            f"{diagnosis.batches} batches show no signal in any block of the backbone once the "
            "head is trained: training the head alone may be as good; to see more, raise --batches"
        )
    elif silent:
        names = _span([block.name for block in body[-silent:]])
        found.append(
            f"no signal in {names} once the head is trained: freeze or release late what has none"
        )
    first = body[: max(1, round(len(body) * _FIRST))]
    rest = body[len(first) :]
    early = max(block.signal for block in first)
    late = max((block.signal for block in rest), default=0.0)
    if early >= SIGNAL and early > _CLEAR * late:
        found.append(
            "the signal is in the first blocks: this looks like another kind of picture than the "
            "weights know (in noise, color or sharpness more than in contents), and layer decay "
            "works against it"
        )
    fastest = max(diagnosis.blocks, key=lambda block: block.relative_step)
    if fastest.relative_step > 0.1 and fastest is not head:
        found.append(
            f"an update moves {fastest.name} by {fastest.relative_step:.0%} of its weights' norm: "
            "its rate is too high to keep what it knows"
        )
    return found


def describe_diagnosis(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as text: a table of the groups, one of the blocks, and findings."""
    lines = [
        f"{diagnosis.batches} batches at fixed weights"
        + (", the head trained first" if diagnosis.head_first else ""),
        "",
        *table([_HEAD, *map(_row, diagnosis.groups)]),
        "",
        *table(
            [
                ("block", *_HEAD[1:], ""),
                *((*_row(block), bar(block.signal, 20)) for block in diagnosis.blocks),
            ]
        ),
    ]
    said = findings(diagnosis)
    return "\n".join([*lines, "", *(said or ["nothing stands out"])])


_HEAD = ("group", "parameters", "peak rate", "gradient/weights", "signal", "step/weights")


def _row(part: DiagnosedPart) -> tuple[str, ...]:
    return (
        part.name,
        f"{part.parameters:,}",
        f"{part.rate:.3g}",
        f"{part.relative_norm:.2e}",
        f"{part.signal:.3f}",
        f"{part.relative_step:.1e}",
    )


def _last_run(flags: Sequence[bool]) -> int:
    """Return how many of the last flags are set without a gap."""
    return next((n for n, flag in enumerate(reversed(flags)) if not flag), len(flags))


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
