"""When the next checkpoint is due, from settings or from what the last ones have cost."""

from worker.checkpoint.interval import MIN_SECONDS, best_interval
from worker.errors import ExitCode, WorkerError
from worker.manifest import Checkpoint
from worker.record.history import read_history
from worker.store import Store

_FADING = 0.5  # weight of the newest checkpoint in the mean cost
_DEATHS = (ExitCode.INFRASTRUCTURE, ExitCode.BUG)


class CheckpointPace:
    """The pace of checkpoints by rank 0's clock.

    Args:
        settings: The checkpoint section of the manifest.
        between_failures: Mean seconds between failures of earlier attempts; None if there was none.
    """

    def __init__(self, settings: Checkpoint, between_failures: float | None) -> None:
        self._settings = settings
        self._between_failures = between_failures
        self._cost: float | None = None
        self._current = 0.0  # cost of the checkpoint that is under way
        self._usual: float | None = None  # seconds of a step beside which nothing is saved
        self._saving = False

    def saved(self, blocked: float) -> None:
        """Note that a checkpoint has begun, and how long training was blocked for it."""
        self._settle()
        self._saving, self._current = True, blocked

    def step(self, seconds: float, *, saving: bool) -> None:
        """Note the duration of a step, and whether a checkpoint was being written meanwhile."""
        if saving:
            self._current += max(0.0, seconds - (self._usual or seconds))
            return
        self._settle()
        # An exponential average over about the last ten steps.
        self._usual = seconds if self._usual is None else 0.9 * self._usual + 0.1 * seconds

    @property
    def cost(self) -> float | None:
        """Seconds that a checkpoint costs; None before the first one is finished."""
        return self._cost

    @property
    def seconds(self) -> float | None:
        """Seconds from one checkpoint to the next; None if that is counted in steps alone."""
        if self._settings.every_minutes is not None:
            return 60 * self._settings.every_minutes
        if self._settings.share is None:
            return None
        if self._cost is None:
            return MIN_SECONDS
        return best_interval(self._cost, self._settings.share, self._between_failures)

    def _settle(self) -> None:
        """Count the checkpoint that was under way, if any, as finished."""
        if not self._saving:
            return
        self._saving = False
        known = self._cost
        self._cost = (
            self._current if known is None else _FADING * self._current + (1 - _FADING) * known
        )


def mean_time_between_failures(output: Store, attempt: int) -> float | None:
    """Return the mean seconds of running for each earlier attempt that died; None if none did.

    An attempt that left no end has died, and so has one that the place has failed.

    Args:
        output: The output of the job.
        attempt: The number of this attempt, which has no end yet.
    """
    try:
        parts = [part for part in read_history(output).parts if part.attempt < attempt]
    except WorkerError:  # only a hint for the interval
        return None
    failures = sum(part.end is None or part.end.code in _DEATHS for part in parts)
    return sum(part.seconds for part in parts) / failures if failures else None
