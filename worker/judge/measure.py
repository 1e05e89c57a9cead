"""A figure with its interval."""

import math

from worker.store.json_records import StoredRecord


class Measure(StoredRecord):
    """A figure and its 95% interval; all None if there is nothing to compute it from."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def measure(value: float, low: float, high: float) -> Measure:
    """Return a measure; one of None if the value is not a number."""
    if math.isnan(value):
        return Measure()
    if math.isnan(low) or math.isnan(high):
        return Measure(value=float(value))
    return Measure(value=float(value), low=float(low), high=float(high))
