"""The pictures that an evaluation got most wrong, small enough to be kept."""

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
_TAG = 1  # the ledger is sent under 0


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A sample that was given another class than its own."""

    loss: float
    """Its loss."""
    id: int
    """Its sample id."""
    label: int
    """Its class."""
    predicted: int
    """The predicted class."""
    confidence: float
    """The probability of the predicted class."""
    image: Tensor
    """What the model saw, uint8 [3, S, S]."""


class Worst:
    """The samples of several batches that are wrong and have the highest losses.

    They stay on the device until the end: to look at each batch would stop the host every time.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, ...] | None = None

    def add(
        self, *, losses: Tensor, ids: Tensor, logits: Tensor, labels: Tensor, images: Tensor
    ) -> None:
        """Look at a batch of n images; of equal losses the earlier counts as worse.

        Args:
            losses: The loss of each image, [n].
            ids: Sample ids, int64 [n].
            logits: Predictions, [n, classes].
            labels: True classes, int64 [n].
            images: What the model saw, uint8 [n, 3, S, S]; all on one device.
        """
        chances, predicted = logits.float().softmax(1).max(1)
        scores = losses.float().masked_fill(predicted == labels, -math.inf)
        batch = _first((scores, ids, labels, predicted, chances, images))
        if self._kept:
            pairs = zip(self._kept, batch, strict=True)
            batch = _first(tuple(torch.cat(pair) for pair in pairs))
        self._kept = batch

    def found(self) -> list[Mistake]:
        """The most wrong of all, most wrong first."""
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
    """The rows with the highest values of the first column."""
    order = columns[0].argsort(descending=True, stable=True)[:MAX_KEPT]
    return tuple(column[order] for column in columns)


def gather_worst(
    mistakes: Sequence[Mistake], name_of: Callable[[int], str]
) -> list[dict[str, Any]]:
    """The most wrong of all ranks as JSON data, with a JPEG of each; on rank 0, nothing on others.

    To be called by all ranks together. Only those that have one of them send pictures. `name_of`
    returns the name of a sample, for people, by its id.
    """
    own = torch.full((MAX_KEPT, 2), -math.inf, dtype=torch.float64)
    for place, mistake in enumerate(mistakes):
        own[place] = torch.tensor(_order(mistake), dtype=torch.float64)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    orders = [{(loss, number) for loss, number in part.tolist()} for part in everyone]
    nothing = (-math.inf, -math.inf)
    chosen = set(heapq.nlargest(MAX_KEPT, set().union(*orders) - {nothing}))
    rows = [_row(mistake, name_of) for mistake in mistakes if _order(mistake) in chosen]
    owners = [rank for rank, part in enumerate(orders) if rank and part & chosen]
    if dist.get_rank() in owners:
        _send(rows)
    if dist.get_rank():
        return []
    rows += [row for rank in owners for row in _receive(rank)]
    return sorted(rows, key=lambda row: -float(row["loss"]))


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
    return mistake.loss, -mistake.id


def _row(mistake: Mistake, name_of: Callable[[int], str]) -> dict[str, Any]:
    small = resize(mistake.image, [_SIDE, _SIDE], antialias=True).permute(1, 2, 0)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(small.numpy()))
    return {
        "sample": name_of(mistake.id),
        "label": mistake.label,
        "predicted": mistake.predicted,
        "confidence": mistake.confidence,
        "loss": mistake.loss,
        "jpeg": base64.b64encode(jpeg).decode(),
    }
