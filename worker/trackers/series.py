"""A run as trackers have it: settings, and series of numbers over the steps."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from worker.judge.figure_text import METRIC_NAMES
from worker.record.events import CommitEvent, EvaluationEvent, Event, StepEvent
from worker.report.compare import shown_setting
from worker.report.read_run import Run


class Point(NamedTuple):
    """A number at a step."""

    step: int
    time: float
    """Unix time, in seconds."""
    value: float


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as trackers get it."""

    name: str
    """The name of the job."""
    uri: str
    """The address of the output."""
    id: str
    """The same for every export of this output."""
    began: float
    """When the first attempt began, in Unix time."""
    ended: float
    """When the last event was recorded."""
    state: str
    """The state, as `worker status` shows it."""
    settings: dict[str, str]
    """The manifest's fields, by dotted name."""
    series: dict[str, list[Point]]
    """The numbers by name, each in order of the steps; repeated steps are in it once."""
    results: dict[str, float]
    """Figures of the finished model, by name."""


def tracked(run: Run) -> TrackedRun:
    """Return what trackers get of a run."""
    events = run.history.events
    series: dict[str, list[Point]] = {}
    for event in events:
        for name, value in _values(event).items():
            if value is not None:
                step = getattr(event, "step", 0)
                series.setdefault(name, []).append(Point(step, event.time, float(value)))
    times = [event.time for event in events] or [0.0]
    uri = run.status.run
    return TrackedRun(
        name=run.status.job,
        uri=uri,
        id=hashlib.sha256(uri.encode()).hexdigest()[:16],
        began=min(times),
        ended=max(times),
        state=run.status.state,
        settings={name: shown_setting(value) for name, value in run.settings.items()},
        series=series,
        results=_results(run),
    )


def _values(event: Event) -> dict[str, float | None]:
    match event:
        case StepEvent():
            return {
                "train/loss": event.loss,
                "train/accuracy": event.accuracy,
                "speed/images_per_second": event.images_per_second,
                "speed/wait_ratio": event.wait_ratio,
                **{f"rate/{name}": rate for name, rate in event.rates.items()},
                **{f"gradient_norm/{name}": norm for name, norm in event.gradient_norms.items()},
            }
        case EvaluationEvent():
            name = METRIC_NAMES[event.metric].replace(" ", "_").lower()
            own = event.metric not in ("accuracy", "loss")
            return {
                "validation/loss": event.loss,
                "validation/accuracy": event.accuracy,
                "validation/top5_accuracy": event.top5_accuracy,
                f"validation/{name}_low": event.low,
                f"validation/{name}_high": event.high,
                **({f"validation/{name}": event.value} if own else {}),
            }
        case CommitEvent():
            return {"checkpoint/seconds": event.seconds, "checkpoint/bytes": event.bytes}
    return {}


def _results(run: Run) -> dict[str, float]:
    found = {}
    for split in ("validation", "test"):
        judgment = getattr(run.final, split) if run.final else None
        if judgment:
            for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "log_loss"):
                value = getattr(judgment, name).value
                if value is not None:
                    found[f"final/{split}_{name}"] = value
    return found
