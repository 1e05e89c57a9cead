"""Timing of training steps."""

import time


class Stopwatch:
    """Mean step duration, for estimating the remaining time, and the time spent waiting."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._last = self._split = time.monotonic()
        self._waited = 0.0

    @property
    def mean(self) -> float:
        """Mean seconds per step, with the latest steps weighted most."""
        return self._mean

    def wait(self, seconds: float) -> None:
        """Add the seconds that a step has waited for its batch."""
        self._waited += seconds

    def lap(self) -> float:
        """Return the seconds since the last call, and update the mean with them."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        # An exponential average over about the last three laps.
        self._mean = seconds if not self._mean else 0.7 * self._mean + 0.3 * seconds
        return seconds

    def split(self) -> tuple[float, float]:
        """Return the seconds since the last split, and the part spent waiting for batches."""
        now = time.monotonic()
        seconds, self._split = now - self._split, now
        waited, self._waited = self._waited, 0.0
        return seconds, waited
