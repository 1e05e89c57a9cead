"""The cost of a run: rank-hours, energy and images, over all of its attempts."""

from pydantic import Field

from worker.record.events import StepEvent
from worker.record.history import AttemptHistory, History
from worker.store.json_records import StoredRecord

_MIN_HOURS = 0.1
_JOULES_PER_KWH = 3.6e6


class Cost(StoredRecord):
    """The cost of a run, with what was lost when attempts died."""

    rank_hours: float = Field(ge=0)
    """Time that ranks were held: GPU-hours, or hours of CPU ranks."""
    joules: float | None = None
    """Energy of the GPUs; None if they do not count it, or there are none."""
    images: int = Field(ge=0)
    """Images trained on, repeated ones included."""

    @property
    def images_per_hour(self) -> float | None:
        """Images per rank-hour."""
        return self.images / self.rank_hours if self.rank_hours else None


def describe_cost(cost: Cost, *, on_gpus: bool) -> str:
    """Return the cost as text; empty if nothing was spent.

    Args:
        cost: The cost.
        on_gpus: Whether the ranks had GPUs.
    """
    if not cost.rank_hours:
        return ""
    hours, unit = cost.rank_hours, "hour"
    if hours < _MIN_HOURS:
        hours, unit = 60 * hours, "minute"
    rank = "GPU" if on_gpus else "CPU rank"
    texts = [f"{hours:.1f} {rank}-{unit}s"]
    if cost.joules is not None:
        texts.append(f"{cost.joules / _JOULES_PER_KWH:.3g} kWh")
    if cost.images_per_hour:
        texts.append(f"{cost.images_per_hour:,.0f} images per {rank}-hour")
    return ", ".join(texts)


def cost_of(history: History) -> Cost:
    """Return the cost of all attempts in a history."""
    energies = [_joules(part) for part in history.parts]
    known = [joules for joules in energies if joules is not None]
    return Cost(
        rank_hours=sum(part.seconds * part.start.world_size for part in history.parts) / 3600,
        joules=sum(known) if known else None,
        images=round(sum(_images(part) for part in history.parts)),
    )


def _joules(part: AttemptHistory) -> float | None:
    """Return the energy since the attempt began, as of its last report that has it."""
    return next(
        (
            event.joules
            for event in reversed(part.events)
            if isinstance(event, StepEvent) and event.joules is not None
        ),
        None,
    )


def _images(part: AttemptHistory) -> float:
    return max((event.images for event in part.events if isinstance(event, StepEvent)), default=0)
