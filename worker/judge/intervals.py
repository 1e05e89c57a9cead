"""95% intervals, each by a method that its function names.

All of them treat the images as a random sample. They say nothing about images of another kind.
"""

import math

import numpy as np
import numpy.typing as npt

from worker.judge.measure import Measure, measure

Floats = npt.NDArray[np.float64]

_Z = 1.959963984540054  # the standard normal's 97.5% quantile
_DRAWS = 1000


def wilson(successes: npt.ArrayLike, trials: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return proportions and their score intervals (Wilson, 1927); NaN where `trials` is 0."""
    k, n = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(n > 0, k / n, np.nan)
        center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    # Rounding must not move a limit past the value itself.
    low = np.minimum(np.maximum(center - half, 0), share)
    return share, low, np.maximum(np.minimum(center + half, 1), share)


def share(part: int, whole: int) -> Measure:
    """Return a proportion with Wilson's interval."""
    value, low, high = wilson(part, whole)
    return measure(float(value), float(low), float(high))


def f1_of(hits: npt.ArrayLike, unions: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return F1 scores and intervals.

    F1 = 2J / (1 + J) grows with J, the share of true positives among all images that are of the
    class or were predicted to be. J is a proportion, so Wilson's limits for J give those of F1.

    Args:
        hits: True positives, by class.
        unions: True positives, false positives and false negatives together, by class.
    """
    jaccard, low, high = wilson(hits, unions)
    return 2 * jaccard / (1 + jaccard), 2 * low / (1 + low), 2 * high / (1 + high)


def mean_of(values: Floats, low: Floats, high: Floats) -> tuple[float, float, float]:
    """Return the mean of independent figures, and its interval from theirs.

    This is the method of variance estimates recovery (Zou and Donner, 2008), which also holds if
    all of the figures are at their limit. Figures that are NaN are left out.
    """
    known = ~np.isnan(values)
    if not known.any():
        return math.nan, math.nan, math.nan
    values, low, high = values[known], low[known], high[known]
    mean = float(values.mean())
    below = math.sqrt(float(((values - low) ** 2).sum())) / len(values)
    above = math.sqrt(float(((high - values) ** 2).sum())) / len(values)
    return mean, mean - below, mean + above


def mean_of_dependent(values: Floats, low: Floats, high: Floats) -> tuple[float, float, float]:
    """Return the mean of figures of the same images, and the means of their limits.

    The interval holds however the figures depend on each other, so it is wider than it would have
    to be if they hardly do. Figures that are NaN are left out.
    """
    known = ~np.isnan(values)
    if not known.any():
        return math.nan, math.nan, math.nan
    return float(values[known].mean()), float(low[known].mean()), float(high[known].mean())


def mean_of_sums(total: float, squares: float, count: int) -> tuple[float, float, float]:
    """Return a mean and its normal interval, from the sum of the values and of their squares."""
    if not count:
        return math.nan, math.nan, math.nan
    mean = total / count
    if count < 2:  # nothing says how much it varies
        return mean, math.nan, math.nan
    spread = max(0.0, squares / count - mean**2) * count / max(1, count - 1)
    half = _Z * math.sqrt(spread / count)
    return mean, max(0.0, mean - half), mean + half


def around(values: Floats, variances: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return limits around shares, symmetric in the log-odds so that they stay within 0 and 1.

    Where the variance is 0, as if nothing is ever wrong, the limits are Wilson's for a proportion
    of `sizes` cases.
    """
    _, least, most = wilson(np.clip(values, 0, 1) * sizes, sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(values) - np.log1p(-values)
        half = _Z * np.sqrt(variances) / (values * (1 - values))
        low, high = 1 / (1 + np.exp(half - odds)), 1 / (1 + np.exp(-half - odds))
    known = (variances > 0) & (values > 0) & (values < 1)
    return np.where(known, low, least), np.where(known, high, most)


def calibration_error(counts: npt.NDArray[np.int64], confidences: Floats) -> Measure:
    """Return the expected calibration error (Naeini et al., 2015) with a bootstrap interval.

    The number of correct predictions of each bin is drawn anew 1,000 times with a fixed seed, with
    a share that is smoothed (Krichevsky and Trofimov, 1981) so that no bin is ever certain. Drawing
    moves the error upwards as sampling itself does: the interval is the basic bootstrap's, which is
    corrected for that, widened to contain the value. It begins at 0 if a model whose confidence is
    honest would have such an error in one of 40 sets (consistency resampling, Bröcker and Smith,
    2007).

    Args:
        counts: Images and correct predictions by bin of confidence, [bins, 2].
        confidences: The sum of the confidences by bin, [bins].
    """
    images = counts[:, 0]
    if not images.sum():
        return Measure()
    confidence = confidences / np.maximum(1, images)
    shares = images / images.sum()
    value = float(shares @ np.abs(counts[:, 1] / np.maximum(1, images) - confidence))
    smoothed = (counts[:, 1] + 0.5) / (images + 1)
    expected = float(shares @ np.abs(smoothed - confidence))
    rng = np.random.default_rng(0)

    def errors(chances: Floats) -> Floats:
        drawn = rng.binomial(images, chances, (_DRAWS, len(images))) / np.maximum(1, images)
        return np.asarray(np.abs(drawn - confidence) @ shares)

    low, high = np.quantile(errors(smoothed), [0.025, 0.975])
    honest = value <= float(np.quantile(errors(np.clip(confidence, 0, 1)), 0.975))
    return Measure(
        value=value,
        low=0.0 if honest else max(0.0, min(value, value + expected - float(high))),
        high=min(1.0, max(value, value + expected - float(low))),
    )
