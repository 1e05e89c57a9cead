"""The worst mistakes of an evaluation, with thumbnails of their images."""

import base64
import heapq
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.transforms.functional import resize

MAX_KEPT = 12
_SIDE = 128
_TAG = 1  # the ledger is sent with tag 0


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A misclassified sample."""

    loss: float
    """Its loss."""
    id: int
    """Its sample id."""
    label: int
    """Its true class."""
    predicted: int
    """The predicted class."""
    confidence: float
    """The probability of the predicted class."""
    image: Tensor
    """The image as the model saw it, uint8 [3, S, S]."""


class Worst:
    """The misclassified samples with the highest losses over several batches.

    They stay on the device until the end: reading each batch back would stall the host every time.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, ...] | None = None

    def add(
        self, *, losses: Tensor, ids: Tensor, logits: Tensor, labels: Tensor, images: Tensor
    ) -> None:
        """Add a batch of n images; among equal losses, the earlier one counts as worse.

        All tensors are on one device.

        Args:
            losses: The loss of each image, [n].
            ids: Sample ids, int64 [n].
            logits: Predictions, [n, classes].
            labels: True classes, int64 [n].
            images: The images as the model saw them, uint8 [n, 3, S, S].
        """
        chances, predicted = logits.float().softmax(1).max(1)
        # Correct predictions sort last and are filtered out in `found`, so that batches keep their
        # shape and the host need not know how many are correct.
        scores = losses.float().masked_fill(predicted == labels, -math.inf)
        batch = _first((scores, ids, labels, predicted, chances, images))
        if self._kept:
            pairs = zip(self._kept, batch, strict=True)
            batch = _first(tuple(torch.cat(pair) for pair in pairs))
        self._kept = batch

    def found(self) -> list[Mistake]:
        """Return the worst mistakes, worst first."""
        if not self._kept:
            return []
        scores, ids, labels, predicted, chances, images = (kept.cpu() for kept in self._kept)
        return [
            Mistake(
                loss=float(score),
                id=int(number),
                label=int(label),
                predicted=int(best),
                confidence=float(chance),
                image=image.clone(),
            )
            for score, number, label, best, chance, image in zip(
                scores, ids, labels, predicted, chances, images, strict=True
            )
            if score != -math.inf
        ]


def _first(columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the rows with the highest values in the first column."""
    order = columns[0].argsort(descending=True, stable=True)[:MAX_KEPT]
    return tuple(column[order] for column in columns)


def gather_worst(
    mistakes: Sequence[Mistake], name_of: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Return the worst mistakes of all ranks as JSON data with JPEGs, on rank 0 only.

    All ranks must call it together; all but rank 0 get an empty list. Only ranks with one of the
    worst mistakes send images. `name_of` returns a readable name for a sample id.
    """
    # Of a fixed size, as all_gather requires: padded with rows of -inf. float64 holds float32
    # losses and ids below 2**53 exactly, so that a rank finds its own mistakes in `chosen`.
    own = torch.full((MAX_KEPT, 2), -math.inf, dtype=torch.float64)
    for place, mistake in enumerate(mistakes):
        own[place] = torch.tensor(_order(mistake), dtype=torch.float64)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    orders = [{(loss, number) for loss, number in part.tolist()} for part in everyone]
    nothing = (-math.inf, -math.inf)
    chosen = set(heapq.nlargest(MAX_KEPT, set().union(*orders) - {nothing}))
    rows = [_row(mistake, name_of) for mistake in mistakes if _order(mistake) in chosen]
    # Every rank must arrive at the same owners, or rank 0 would wait for rows that nobody sends.
    owners = [rank for rank, part in enumerate(orders) if rank and part & chosen]
    if dist.get_rank() in owners:
        _send(rows)
    if dist.get_rank():
        return []
    rows += [row for rank in owners for row in _receive(rank)]
    return sorted(rows, key=lambda row: -_sortable(float(row["loss"])))


def _send(rows: list[dict[str, Any]]) -> None:
    data = torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)
    dist.send(torch.tensor([len(data)]), 0, tag=_TAG)
    dist.send(data, 0, tag=_TAG)


def _receive(rank: int) -> list[dict[str, Any]]:
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, rank, tag=_TAG)
    data = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(data, rank, tag=_TAG)
    rows: list[dict[str, Any]] = json.loads(data.numpy().tobytes())
    return rows


def _order(mistake: Mistake) -> tuple[float, int]:
    # A loss that is not a number counts as the worst: all ranks must agree on the order.
    return _sortable(mistake.loss), -mistake.id


def _sortable(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def _row(mistake: Mistake, name_of: Callable[[int], str]) -> dict[str, Any]:
    small = resize(mistake.image, [_SIDE, _SIDE], antialias=True).permute(1, 2, 0)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(small.numpy()))
    return {
        "sample": name_of(mistake.id),
        "label": mistake.label,
        "predicted": mistake.predicted,
        # JSON has no NaN, which a model that has diverged is confident with.
        "confidence": mistake.confidence if math.isfinite(mistake.confidence) else 0.0,
        "loss": mistake.loss,
        "jpeg": base64.b64encode(jpeg).decode(),
    }
