"""The time between checkpoints that follows from what they cost. Pure functions."""

import math

MIN_SECONDS = 60.0
"""Less than this is never worth the requests; the first checkpoint, which measures the cost, comes
after this time."""


def best_interval(cost: float, overhead: float, between_failures: float | None) -> float:
    """Return the seconds from one checkpoint to the next.

    The cost may be at most `overhead` of the time (CheckFreq: Mohan et al., 2021). If attempts die
    so often that what they lose outweighs that, the interval is the one that loses least in all,
    the square root of twice the cost times the mean time between failures (Young, 1974; Daly,
    2006), and checkpoints may then cost more.

    Args:
        cost: Seconds that a checkpoint takes from training: blocked, and by slower steps.
        overhead: The share of the time that checkpoints may cost.
        between_failures: Mean seconds between failures; None if there was none.
    """
    interval = cost / overhead
    if between_failures is not None:
        interval = min(interval, math.sqrt(2 * cost * between_failures))
    return max(MIN_SECONDS, interval)
