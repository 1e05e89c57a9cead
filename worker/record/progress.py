"""Progress display: a live line on a terminal, log lines elsewhere."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from worker.charts import bar, duration
from worker.logs import end_live, show_live

log = logging.getLogger(__name__)

_LIVE_SECONDS, _LINE_SECONDS = 0.1, 5.0


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """The progress of a job after a step."""

    step: int
    """The number of completed steps."""
    total_steps: int
    """The total number of steps of the job."""
    epoch: int
    """The epoch of the step, from 1."""
    loss: float
    """Mean training loss since the last report."""
    accuracy: float
    """Training accuracy since the last report."""
    images_per_second: float
    """Speed since the last report."""
    wait_ratio: float
    """Share of the time spent waiting for images, on the rank that waits most."""
    remaining_seconds: float
    """Estimated time to the end of the job."""
    checkpoint_seconds: float
    """Time from one checkpoint to the next."""
    rates: Mapping[str, float]
    """Learning rates, by group."""
    gradient_norms: Mapping[str, float]
    """Gradient norms of the last step, by trained group."""
    images: int = 0
    """Images that this attempt has trained on."""
    joules: float | None = None
    """Energy of all GPUs since the attempt began; None if it is not counted."""


class Progress:
    """Display of steps: a live line if there is a terminal, log lines otherwise."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._interval = _LIVE_SECONDS if live else _LINE_SECONDS
        self._next = time.monotonic()

    def show(self, step: StepProgress) -> None:
        """Show a step, unless the previous one was shown only a moment ago."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._interval
        text = describe(step)
        if self._live:
            show_live(f"{bar(step.step / step.total_steps)} {text}")
        else:
            fields = {"event": "step", **step.__dict__}
            log.info("%s", text, extra={"fields": fields})

    def close(self) -> None:
        """Remove the live line."""
        if self._live:
            end_live()


def describe(step: StepProgress) -> str:
    """Return one line, most important facts first, since a narrow terminal cuts off the end."""
    # Keyed by text, so that rates that look equal are not shown as a range.
    rates = sorted({f"{rate:.2g}": rate for rate in step.rates.values()}.items(), key=_rate)
    ends = [rates[0][0], rates[-1][0]] if len(rates) > 1 else [text for text, _ in rates]
    return (
        f"step {step.step}/{step.total_steps}  epoch {step.epoch}  loss {step.loss:.3f}  "
        f"acc {step.accuracy:.1%}  {step.images_per_second:.0f} img/s  "
        f"left {duration(step.remaining_seconds)}  lr {' to '.join(ends)}"
    )


def _rate(shown: tuple[str, float]) -> float:
    return shown[1]
