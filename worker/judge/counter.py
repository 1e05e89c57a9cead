"""Adding up the sums of a tally, batch by batch and over all ranks."""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from worker.judge.pairs import Pairs, gather_rows
from worker.judge.tally import (
    FRACTION_BITS,
    LINEAR_LOG_ODDS,
    RELIABILITY_BINS,
    SQUARE_BITS,
    TOP,
    TOP_HEIGHT,
    Tally,
    bins_for,
    no_knowledge,
)

_MAX_LOSS = 1e3  # larger ones count as this, so that no sum overflows


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
            _fixed(losses, FRACTION_BITS),
            _fixed(losses.square(), SQUARE_BITS),
            _fixed(brier, FRACTION_BITS),
            _fixed(brier.square(), SQUARE_BITS),
        )
        self._sums[:5] += (torch.stack(columns) * weights).sum(1)

    def _add_scores(self, logs: Tensor, labels: Tensor, weights: Tensor) -> None:
        # Where p is nearly 1, the log of 1 - p is that of the sum of the other classes.
        _, first = logs.max(1, keepdim=True)
        rest = logs.scatter(1, first, -math.inf).logsumexp(1, keepdim=True)
        others = torch.log(-torch.expm1(logs.clamp(max=-1e-9))).scatter(1, first, rest)
        odds = logs - others
        heights = torch.asinh((odds - no_knowledge(self._classes)) / LINEAR_LOG_ODDS)
        heights = (heights / TOP_HEIGHT + 1) / 2
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
                _fixed(confidence, FRACTION_BITS),
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
