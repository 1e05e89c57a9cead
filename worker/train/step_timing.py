"""Timing of training steps."""

import time


class Stopwatch:
    """Mean duration of the steps, by which the end is foretold, and how long they waited."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._last = self._split = time.monotonic()
        self._waited = 0.0

    @property
    def mean(self) -> float:
        """Seconds that a step takes, the last ones weighing most."""
        return self._mean

    def wait(self, seconds: float) -> None:
        """Note that a step has waited for its batch."""
        self._waited += seconds

    def lap(self) -> float:
        """Seconds since the last call, which also move the mean."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._mean = seconds if not self._mean else 0.7 * self._mean + 0.3 * seconds
        return seconds

    def split(self) -> tuple[float, float]:
        """Seconds since the last split, and how many of them were waited for batches."""
        now = time.monotonic()
        seconds, self._split = now - self._split, now
        waited, self._waited = self._waited, 0.0
        return seconds, waited
