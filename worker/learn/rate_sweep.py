"""The results of a learning-rate range test (Smith, 2017), and the rate they suggest.

All functions are pure.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worker.charts import sparkline
from worker.errors import ConfigurationError

_SMOOTHING = 0.9
_MIN_POINTS = 10
_MIN_FALL = 0.1
_MIN_MARGIN = 0.25  # of the lowest loss
_SIGMAS = 4.0  # strict, as the search for the longest fall also picks the largest noise
_NORMAL_MEDIAN = 0.6745  # median absolute value of a normal variable, in standard deviations
_COLUMNS = 60
_BELOW_RISE = 10.0  # as in fastai's "minimum"
_LAG = 9  # points by which the moving average follows late


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Losses at a range of base rates, and the base rate that they suggest."""

    rates: tuple[float, ...]
    """Base rates, in increasing order."""
    losses: tuple[float, ...]
    """Smoothed losses."""
    suggestion: float | None
    """Suggested base rate; None if the loss neither clearly falls nor clearly rises."""
    falls: bool
    """Whether the suggestion is the rate at which the loss falls; otherwise, it is a tenth of the
    rate from which the loss rises."""
    diverged: bool
    """Whether the sweep ended early because the loss grew too large."""

    def as_dict(self) -> dict[str, Any]:
        """Return the sweep as JSON-serializable data."""
        return asdict(self)


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving average of losses, with bias correction."""
    average, smoothed = 0.0, []
    for number, loss in enumerate(losses, start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING**number))
    return smoothed


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate in the middle of the smoothed loss's longest fall (fastai's "valley").

    The result is None if the loss falls by less than a tenth, or by no more than noise between
    batches would explain: even at rates far too low to learn anything, the loss sometimes falls.
    """
    smoothed = smooth(losses)
    # Longest decreasing subsequence by dynamic programming, O(n²): `lengths[i]` is the length of
    # the longest one that ends at i, and `starts[i]` is where it starts.
    lengths = [1] * len(smoothed)
    starts = list(range(len(smoothed)))
    for end in range(1, len(smoothed)):
        for start in range(end):
            if smoothed[start] > smoothed[end] and lengths[start] + 1 > lengths[end]:
                lengths[end], starts[end] = lengths[start] + 1, starts[start]
    end = max(range(len(smoothed)), key=lambda i: lengths[i])
    start = starts[end]
    fall = smoothed[start] - smoothed[end]
    # The two averages share losses, so their difference varies less than the sum of their variances
    # says. This errs on the strict side.
    noise = noise_of(losses) * math.sqrt(_averaged(start + 1) + _averaged(end + 1))
    if fall < max(_MIN_FALL * smoothed[start], _SIGMAS * noise):
        return None
    return rates[(start + end) // 2]


def suggest_below_rise(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return a tenth of the rate from which the loss clearly rises; None if it does not.

    A trained head leaves little for the loss to fall by; then the rates that are too high still
    show. The result is never below the lowest rate.
    """
    smoothed = smooth(losses)
    # The first averages are of too few losses to count as the lowest.
    lowest = min(smoothed[_MIN_POINTS:], default=smoothed[-1])
    noise = noise_of(losses) * math.sqrt(2 * _averaged(len(losses)))
    limit = lowest + max(_MIN_FALL * lowest, _SIGMAS * noise)
    if smoothed[-1] <= limit:
        return None
    last = max(place for place, loss in enumerate(smoothed) if loss <= limit)
    return max(rates[0], rates[max(0, last - _LAG)] / _BELOW_RISE)


def noise_of(losses: Sequence[float]) -> float:
    """Return the standard deviation of the loss from batch to batch.

    It is estimated from the median difference, which is robust to divergence at the end.
    """
    differences = [abs(later - earlier) for earlier, later in itertools.pairwise(losses)]
    # A difference of two independent losses has sqrt(2) times the deviation of one.
    return statistics.median(differences) / (_NORMAL_MEDIAN * math.sqrt(2))


def _averaged(count: int) -> float:
    """Return the variance of the moving average of `count` numbers of variance 1."""
    # The average is a weighted sum with weights share * s**k / (1 - s**count), k < count; the
    # variance is the sum of their squares, a geometric series.
    share = 1 - _SMOOTHING
    squares = (1 - _SMOOTHING ** (2 * count)) / (1 - _SMOOTHING**2)
    return squares * (share / (1 - _SMOOTHING**count)) ** 2


def make_sweep(rates: list[float], losses: list[float], *, diverged: bool) -> Sweep:
    """Build a sweep from the losses at its base rates.

    Args:
        rates: Base rates, in increasing order.
        losses: The loss after a step at each rate.
        diverged: Whether the sweep ended because the loss grew too large.

    Returns:
        The sweep, with smoothed losses and a suggestion.

    Raises:
        ConfigurationError: If the sweep ended too early to be conclusive.
    """
    finite = [number for number, loss in enumerate(losses) if math.isfinite(loss)]
    rates, losses = [rates[n] for n in finite], [losses[n] for n in finite]
    if len(rates) < _MIN_POINTS:
        raise ConfigurationError(f"--low: the loss diverges within {len(rates)} steps; start lower")
    falling = suggest(rates, losses)
    return Sweep(
        rates=tuple(rates),
        losses=tuple(smooth(losses)),
        suggestion=suggest_below_rise(rates, losses) if falling is None else falling,
        falls=falling is not None,
        diverged=diverged,
    )


def describe_sweep(sweep: Sweep, base: float) -> str:
    """Return a one-line chart of the loss over the rates, and the suggested base rate."""
    losses, low = clipped(sweep), min(sweep.losses)
    places = [round(i * (len(losses) - 1) / (_COLUMNS - 1)) for i in range(_COLUMNS)]
    # Slightly above 0, as the chart shows 0 as a dot, which would look like no value at all.
    bars = sparkline([losses[i] - low + 1e-9 for i in places], (max(losses) - low) or 1.0)
    best = min(zip(sweep.losses, sweep.rates, strict=True))[1]
    lines = [
        f"loss {sweep.losses[0]:.3f} {bars} {sweep.losses[-1]:.3f}",
        f"base rate {sweep.rates[0]:.2g} to {sweep.rates[-1]:.2g}"
        + (", where the loss diverges" if sweep.diverged else ""),
        f"lowest loss at {best:.2g}",
        *_describe_suggestion(sweep, base),
    ]
    return "\n".join(lines)


def _describe_suggestion(sweep: Sweep, base: float) -> list[str]:
    if sweep.suggestion is None:
        return [
            "no suggestion: the loss does not clearly fall; raise --steps, or set another --low "
            "and --high"
        ]
    lines = [
        f"suggestion: optimizer.lr: {sweep.suggestion:.1e} ({sweep.suggestion / base:.2g} "
        "times that of the manifest; scale the groups' absolute rates by the same factor)"
    ]
    if not sweep.falls:
        lines.insert(0, "the loss does not clearly fall, but rises beyond that: a tenth is safe")
    return lines


def clipped(sweep: Sweep) -> list[float]:
    """Return the losses, clipped a little above the first, as divergence would hide the fall."""
    first, low = sweep.losses[0], min(sweep.losses)
    # If the loss never falls, the first is the lowest, and the rise has to show.
    margin = max((first - low) / 2, low * _MIN_MARGIN)
    return [min(loss, first + margin) for loss in sweep.losses]
