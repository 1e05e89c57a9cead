"""Integer sums over images, from which every figure of a judgment follows.

Integers add up to the same total in any order, so the figures are the same to the last digit on any
number of ranks. What is not a count is rounded to a fixed number of binary digits before it is
added.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from worker.judge.confusion import Pairs, Rows, gather_rows
from worker.judge.intervals import Floats
from worker.judge.ranking import Histograms

TOP = 5
RELIABILITY_BINS = 15
_MAX_LOG_ODDS, _LINEAR_LOG_ODDS = 1000.0, 0.05
_TOP_HEIGHT = math.asinh(_MAX_LOG_ODDS / _LINEAR_LOG_ODDS)
_MAX_CELLS = 1 << 23  # of the histograms, 64 MiB
_MAX_BINS, _MIN_BINS = 1 << 15, 64
_FRACTION_BITS, _SQUARE_BITS = 24, 20
_MAX_LOSS = 1e3  # larger ones count as this, so that no sum overflows


def bins_for(classes: int) -> int:
    """Return the number of bins of a score, which takes less memory than a limit for all classes.

    Up to 128 classes, there are 32,768. They cover the log-odds around those of a model that knows
    nothing, up to 1,000 on either side. Their width is 0.00003 there, which tells the scores of a
    head apart that has hardly been trained, and 0.07 % of the distance farther away.
    """
    return max(_MIN_BINS, min(_MAX_BINS, _MAX_CELLS // (2 * classes)))


def edges(bins: int, classes: int) -> Floats:
    """Return the lowest probability of each bin, [bins]; that of the first is 0."""
    places = (2 * np.arange(bins) / bins - 1) * _TOP_HEIGHT
    odds = _LINEAR_LOG_ODDS * np.sinh(places) + _no_knowledge(classes)
    odds[0] = -np.inf
    with np.errstate(over="ignore"):  # e**1000 is infinite, and its inverse is 0
        return np.asarray(1 / (1 + np.exp(-odds)))


def _no_knowledge(classes: int) -> float:
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
        return float(self.sums[1]) / (1 << _FRACTION_BITS), float(self.sums[2]) / (
            1 << _SQUARE_BITS
        )

    @property
    def brier_scores(self) -> tuple[float, float]:
        """The sum of the Brier scores, and of their squares."""
        return float(self.sums[3]) / (1 << _FRACTION_BITS), float(self.sums[4]) / (
            1 << _SQUARE_BITS
        )

    @property
    def confidences(self) -> Floats:
        """The sum of the confidences by bin of confidence, [15]."""
        return self.reliability[:, 2] / (1 << _FRACTION_BITS)


class Counter:
    """A rank's sums; adding a batch never waits for the device.

    Args:
        classes: Number of classes.
        device: The device of the predictions.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._bins = bins_for(classes)
        self._pairs = Pairs(classes)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self._histograms = zeros(classes * 2 * self._bins)
        self._reliability = zeros(RELIABILITY_BINS, 3)
        self._sums = zeros(6)
        # Offset of each class's histogram of negatives, [1, classes].
        self._starts = (torch.arange(classes, device=device) * 2 * self._bins)[None]

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Predictions, [N, classes].
            labels: True classes, int64 [N].
        """
        logits = logits.double()
        finite = logits.isfinite().all(1)
        self._sums[5] += (~finite).sum()
        # Rows stay in place, so that no shape depends on values that are on the device; those that
        # are not finite get a weight of 0.
        logits = torch.where(finite[:, None], logits, 0)
        self._pairs.add(labels, logits.argmax(1), finite)
        weights = finite.long()
        logs = F.log_softmax(logits, 1)
        chances = logs.exp()
        self._add_scores(logs, labels, weights)
        self._add_reliability(chances, labels, weights)
        top = logits.topk(min(TOP, self._classes)).indices
        losses = -logs.gather(1, labels[:, None])[:, 0].clamp(min=-_MAX_LOSS)
        right = chances.gather(1, labels[:, None])[:, 0]
        brier = chances.square().sum(1) - 2 * right + 1
        columns = (
            (top == labels[:, None]).any(1).long(),
            _fixed(losses, _FRACTION_BITS),
            _fixed(losses.square(), _SQUARE_BITS),
            _fixed(brier, _FRACTION_BITS),
            _fixed(brier.square(), _SQUARE_BITS),
        )
        self._sums[:5] += (torch.stack(columns) * weights).sum(1)

    def _add_scores(self, logs: Tensor, labels: Tensor, weights: Tensor) -> None:
        # Where p is nearly 1, the log of 1 - p is that of the sum of the other classes.
        _, first = logs.max(1, keepdim=True)
        rest = logs.scatter(1, first, -math.inf).logsumexp(1, keepdim=True)
        others = torch.log(-torch.expm1(logs.clamp(max=-1e-9))).scatter(1, first, rest)
        odds = logs - others
        heights = torch.asinh((odds - _no_knowledge(self._classes)) / _LINEAR_LOG_ODDS)
        heights = (heights / _TOP_HEIGHT + 1) / 2
        bins = (heights * self._bins).floor().clamp(0, self._bins - 1).long()
        places = self._starts + bins
        places.scatter_add_(1, labels[:, None], torch.full_like(labels[:, None], self._bins))
        each = weights[:, None].expand_as(places).reshape(-1)
        self._histograms.index_add_(0, places.reshape(-1), each)

    def _add_reliability(self, chances: Tensor, labels: Tensor, weights: Tensor) -> None:
        confidence, predicted = chances.max(1)
        bins = (confidence * RELIABILITY_BINS).ceil().long().clamp(1, RELIABILITY_BINS) - 1
        rows = torch.stack(
            [
                torch.ones_like(labels),
                (predicted == labels).long(),
                _fixed(confidence, _FRACTION_BITS),
            ],
            1,
        )
        self._reliability.index_add_(0, bins, rows * weights[:, None])

    def own(self) -> Tally:
        """Return the sums of this rank alone."""
        return Tally(
            rows=self._pairs.rows(),
            histograms=self._histograms.cpu().numpy().reshape(self._classes, 2, self._bins),
            reliability=self._reliability.cpu().numpy(),
            sums=self._sums.cpu().numpy(),
        )


def add_ranks(own: Tally) -> Tally:
    """Return the sums over all ranks; all of them call it together.

    The confusion counts of all ranks are known to rank 0 alone; other ranks get their own.
    """
    tensors = [torch.from_numpy(part) for part in (own.histograms, own.reliability, own.sums)]
    for tensor in tensors:
        dist.all_reduce(tensor)
    return Tally(
        rows=gather_rows(own.rows),
        histograms=tensors[0].numpy(),
        reliability=tensors[1].numpy(),
        sums=tensors[2].numpy(),
    )


def _fixed(values: Tensor, bits: int) -> Tensor:
    return (values * (1 << bits)).round().long()
