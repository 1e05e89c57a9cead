"""Ranking of images by a class's score: AUROC, average precision, and thresholds.

All of it is computed from histograms of the scores of the images of the class (positives) and of
all others (negatives). Scores within one bin count as equal.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worker.judge.intervals import Floats, around, wilson

_FEW = 10

Histograms = npt.NDArray[np.int64]
"""[classes, 2, bins]: negatives and positives, by class and bin of their score, ascending."""


class Ranked(NamedTuple):
    """A figure for each class with its limits, [classes]; NaN if it is undefined."""

    value: Floats
    low: Floats
    high: Floats


def auroc(histograms: Histograms) -> Ranked:
    """Return the areas under the ROC curves, with intervals from DeLong's variance (1988).

    The area is the share of the pairs of a positive and a negative in which the positive has the
    higher score; pairs with equal scores count half.
    """
    negative, positive = histograms[:, 0].astype(np.float64), histograms[:, 1].astype(np.float64)
    n, p = negative.sum(1), positive.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Placements: for each bin, the share of the other kind that an image in it outranks.
        beats = (negative.cumsum(1) - negative / 2) / n[:, None]
        beaten = 1 - (positive.cumsum(1) - positive / 2) / p[:, None]
        value = (positive * beats).sum(1) / p
        spread = (positive * (beats - value[:, None]) ** 2).sum(1) / np.maximum(1, p - 1) / p
        spread += (negative * (beaten - value[:, None]) ** 2).sum(1) / np.maximum(1, n - 1) / n
    rarer = np.minimum(n, p)
    low, high = around(value, np.nan_to_num(spread), rarer)
    # Of few images, the variance cannot be estimated: the limits are at least as wide as those of a
    # proportion of so many cases.
    few = rarer < _FEW
    _, least, most = wilson(np.nan_to_num(value) * rarer, rarer)
    low, high = np.where(few, np.fmin(low, least), low), np.where(few, np.fmax(high, most), high)
    return Ranked(value, np.where(np.isnan(value), np.nan, low), high)


def average_precision(histograms: Histograms) -> Ranked:
    """Return average precisions: the mean, over the positives, of the precision at their score.

    Within a bin, positives and negatives are taken to be evenly mixed. The interval is symmetric in
    the log-odds, with the variance AP (1 - AP) / positives (Boyd et al., 2013).
    """
    hits, alarms = at_least(histograms)
    own_alarms, own_hits = histograms[:, 0], histograms[:, 1]
    p = hits[:, 0].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # At the middle one of the bin's positives, which counts itself.
        found = hits - (own_hits - 1) / 2
        precision = found / (found + alarms - own_alarms / 2)
        value = np.where(p > 0, np.nansum(precision * own_hits, axis=1) / p, np.nan)
        spread = value * (1 - value) / p
    low, high = around(value, np.nan_to_num(spread), p)
    return Ranked(value, np.where(np.isnan(value), np.nan, low), high)


def at_least(histograms: Histograms) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the positives and negatives whose score is in a bin or above it, [classes, bins]."""
    above = histograms[:, :, ::-1].cumsum(2)[:, :, ::-1]
    return above[:, 1], above[:, 0]
