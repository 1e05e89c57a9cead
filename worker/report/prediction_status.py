"""The state of a prediction, from its store alone."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from worker.apply.prediction_plan import INDEX_NAME, PREDICTIONS, PredictionPlan
from worker.charts import bar, duration
from worker.redaction import redacted
from worker.store import Store

_SILENT_SECONDS = 600.0  # longer than a part takes on one slow core


@dataclass(frozen=True, kw_only=True)
class PredictionStatus:
    """The progress of a prediction."""

    out: str
    """The address of its results."""
    model: str
    """The address of the model."""
    source: str
    """The address of the images."""
    state: str
    """`done`, `running`, or `silent` if no part was published for ten minutes."""
    parts: int
    """Published parts."""
    total_parts: int
    """All parts."""
    images: int
    """Images in the published parts."""
    total_images: int
    """All images."""
    images_per_second: float | None
    """Speed of all starters together, over the parts published in the last ten minutes."""
    age: float
    """Seconds since the last part was published."""

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON data."""
        return asdict(self)


def read_prediction_status(plan: PredictionPlan, out: Store) -> PredictionStatus:
    """Return the state of a prediction."""
    done: dict[int, float] = {}
    last, began, ended = 0.0, time.time(), False
    for info in out.list(PREDICTIONS):
        number = plan.number_of(info.key)
        ended |= info.key == INDEX_NAME
        began = min(began, info.modified)
        if number is not None:
            done[number] = info.modified
            last = max(last, info.modified)
    now = time.time()
    age = max(0.0, now - (last or began))
    state = "done" if ended else "silent" if age > _SILENT_SECONDS else "running"
    return PredictionStatus(
        out=out.uri,
        model=plan.model,
        source=plan.source,
        state=state,
        parts=len(done),
        total_parts=len(plan.parts),
        images=sum(plan.parts[number].images for number in done),
        total_images=plan.images,
        images_per_second=_speed(plan, done) if state == "running" else None,
        age=age,
    )


def _speed(plan: PredictionPlan, done: dict[int, float]) -> float | None:
    """Return the speed between the first and the last of the recent parts."""
    recent = sorted((at, n) for n, at in done.items() if at > max(done.values()) - _SILENT_SECONDS)
    if len(recent) < 2 or recent[-1][0] - recent[0][0] < 1:
        return None
    images = sum(plan.parts[number].images for _, number in recent[1:])
    return images / (recent[-1][0] - recent[0][0])


def describe_prediction(status: PredictionStatus) -> str:
    """Format the state as text, one line per fact."""
    share = status.images / max(1, status.total_images)
    speed, left = status.images_per_second, ""
    if speed:
        left = f", {duration((status.total_images - status.images) / speed)} left"
    rows = {
        "model": redacted(status.model),
        "images": f"{status.images:,} of {status.total_images:,} from {redacted(status.source)}",
        "state": f"{status.state}, last part {duration(status.age)} ago",
        "parts": f"{status.parts} of {status.total_parts}  {bar(share)} {share:.0%}",
        "speed": f"{speed:.0f} images/s{left}" if speed else "",
        "results": f"{status.out}predictions/",
    }
    return "\n".join(f"{name:<9} {text}" for name, text in rows.items() if text)
