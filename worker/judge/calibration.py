"""Temperature scaling (Guo et al., 2017): one number that makes a model's probabilities honest."""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

_LOW, _HIGH = math.log(0.05), math.log(20.0)
_ROUNDS = 40
_MARGIN = 0.01  # in log T
_GOLDEN = (math.sqrt(5) - 1) / 2
_ROWS = 1 << 14  # converted to float64 at a time
_FRACTION_BITS = 24


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return the temperature with the lowest log loss over all ranks, from 0.05 to 20.

    Return None if it lies beyond these limits: if every image is right, no temperature is low
    enough, and if the model knows nothing, none is high enough.

    All ranks call it together and get the same result, which does not depend on their number: the
    losses are rounded to a fixed number of binary digits and added as integers. The loss is convex
    in 1 / T, so that a golden-section search in log T finds its minimum.

    Args:
        logits: This rank's predictions, [n, classes].
        labels: Their true classes, int64 [n].
    """
    low, high = _LOW, _HIGH
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = _loss(logits, labels, left), _loss(logits, labels, right)
    for _ in range(_ROUNDS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = _loss(logits, labels, left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = _loss(logits, labels, right)
    found = (low + high) / 2
    if min(found - _LOW, _HIGH - found) < _MARGIN:
        return None
    return float(f"{math.exp(found):.6g}")


def _loss(logits: Tensor, labels: Tensor, log_temperature: float) -> int:
    """Return the summed log loss of all ranks in units of 2**-24."""
    total = torch.zeros(1, dtype=torch.int64)
    scale = math.exp(-log_temperature)
    for part, classes in zip(logits.split(_ROWS), labels.split(_ROWS), strict=True):
        losses = F.cross_entropy(part.double() * scale, classes, reduction="none")
        finite = torch.nan_to_num(losses, nan=0.0, posinf=0.0).clamp(max=1e3)
        total += (finite * (1 << _FRACTION_BITS)).round().long().sum()
    dist.all_reduce(total)
    return int(total)
