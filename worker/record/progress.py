"""Progress for people: a live line on a terminal, log lines elsewhere."""

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
    """The progress of a job; `loss` and `accuracy` are means since the last report.

    `wait_ratio` is the share of the time for which the rank that waits most has waited for images;
    `gradient_norms` are those of the last step, by group, of the groups that it trained.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    accuracy: float
    images_per_second: float
    wait_ratio: float
    remaining_seconds: float
    rates: Mapping[str, float]
    gradient_norms: Mapping[str, float]


class Progress:
    """Shows steps: as a live line where there is a terminal, and as a log line else."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._interval = _LIVE_SECONDS if live else _LINE_SECONDS
        self._next = time.monotonic()

    def show(self, step: StepProgress) -> None:
        """Show one step, unless the last one was shown a moment ago."""
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
        """Take the live line away."""
        if self._live:
            end_live()


def describe(step: StepProgress) -> str:
    """Return one line, the most important first, as a narrow terminal cuts the end."""
    rates = sorted({f"{rate:.2g}": rate for rate in step.rates.values()}.items(), key=_rate)
    ends = [rates[0][0], rates[-1][0]] if len(rates) > 1 else [text for text, _ in rates]
    return (
        f"step {step.step}/{step.total_steps}  epoch {step.epoch}  loss {step.loss:.3f}  "
        f"acc {step.accuracy:.1%}  {step.images_per_second:.0f} img/s  "
        f"left {duration(step.remaining_seconds)}  lr {' to '.join(ends)}"
    )


def _rate(shown: tuple[str, float]) -> float:
    return shown[1]
