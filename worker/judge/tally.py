"""Integer sums over images, from which every figure of a judgment follows.

Integers add up to the same total in any order, so the figures are the same to the last digit on any
number of ranks. What is not a count is rounded to a fixed number of binary digits before it is
added.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.judge.confusion import Rows
from worker.judge.intervals import Floats
from worker.judge.ranking import Histograms

TOP = 5
RELIABILITY_BINS = 15
_MAX_LOG_ODDS, LINEAR_LOG_ODDS = 1000.0, 0.05
TOP_HEIGHT = math.asinh(_MAX_LOG_ODDS / LINEAR_LOG_ODDS)
_MAX_CELLS = 1 << 23  # of the histograms, 64 MiB
_MAX_BINS, _MIN_BINS = 1 << 15, 64
FRACTION_BITS, SQUARE_BITS = 24, 20


def bins_for(classes: int) -> int:
    """Return the number of bins of a score, which takes less memory than a limit for all classes.

    Up to 128 classes, there are 32,768. They cover the log-odds around those of a model that knows
    nothing, up to 1,000 on either side. Their width is 0.00003 there, which tells the scores of a
    head apart that has hardly been trained, and 0.07% of the distance farther away.
    """
    return max(_MIN_BINS, min(_MAX_BINS, _MAX_CELLS // (2 * classes)))


def edges(bins: int, classes: int) -> Floats:
    """Return the lowest probability of each bin, [bins]; that of the first is 0."""
    places = (2 * np.arange(bins) / bins - 1) * TOP_HEIGHT
    odds = LINEAR_LOG_ODDS * np.sinh(places) + no_knowledge(classes)
    odds[0] = -np.inf
    with np.errstate(over="ignore"):  # e**1000 is infinite, and its inverse is 0
        return np.asarray(1 / (1 + np.exp(-odds)))


def no_knowledge(classes: int) -> float:
    """Return the log-odds of a class if all classes are equally likely."""
    return -math.log(classes - 1)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The sums over a set of images with finite predictions."""

    rows: Rows
    """Confusion counts; see `worker.judge.confusion`."""
    histograms: Histograms
    """Images by class, by whether they are of that class, and by its score, [classes, 2, bins]."""
    reliability: npt.NDArray[np.int64]
    """Images, correct ones, and confidence, by bin of confidence, [15, 3]."""
    sums: npt.NDArray[np.int64]
    """Top-5 hits; log losses and their squares; Brier scores and their squares; images whose
    prediction is not finite, which are counted nowhere else, [6]."""

    @property
    def images(self) -> int:
        """The number of images with a finite prediction."""
        return int(self.rows[:, 2].sum())

    @property
    def top5_hits(self) -> int:
        """The number of images whose class is among the first five."""
        return int(self.sums[0])

    @property
    def not_finite(self) -> int:
        """The number of images whose prediction is not finite."""
        return int(self.sums[5])

    @property
    def log_losses(self) -> tuple[float, float]:
        """The sum of the log losses, and of their squares."""
        return float(self.sums[1]) / (1 << FRACTION_BITS), float(self.sums[2]) / (1 << SQUARE_BITS)

    @property
    def brier_scores(self) -> tuple[float, float]:
        """The sum of the Brier scores, and of their squares."""
        return float(self.sums[3]) / (1 << FRACTION_BITS), float(self.sums[4]) / (1 << SQUARE_BITS)

    @property
    def confidences(self) -> Floats:
        """The sum of the confidences by bin of confidence, [15]."""
        return self.reliability[:, 2] / (1 << FRACTION_BITS)
