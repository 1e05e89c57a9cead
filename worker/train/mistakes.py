"""The pictures that an evaluation got most wrong, small enough to be kept."""

import base64
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch.distributed as dist
from torch import Tensor
from torchvision.transforms.functional import resize

from worker.data.index import Index

MOST = 12
_SIDE = 128


@dataclass(frozen=True)
class Mistake:
    """A sample with another class than its own seen in it, at a `confidence` from 0 to 1.

    `image` is what the model saw, uint8 [3, S, S].
    """

    loss: float
    id: int
    label: int
    predicted: int
    confidence: float
    image: Tensor


def worst(
    losses: Tensor, ids: Sequence[int], logits: Tensor, labels: Tensor, images: Tensor
) -> list[Mistake]:
    """Of a batch of n, those that are wrong and have the highest losses, most wrong first.

    `losses` [n], `logits` [n, classes] and `images` uint8 [n, 3, S, S] may be on any device,
    `labels` [n] are on the CPU.
    """
    chances, predicted = logits.float().softmax(1).max(1)
    losses, chances, predicted = (x.cpu() for x in (losses, chances, predicted))
    found: list[Mistake] = []
    for place in losses.argsort(descending=True).tolist():
        if len(found) == MOST:
            break
        if predicted[place] != labels[place]:
            found.append(
                Mistake(
                    float(losses[place]),
                    int(ids[place]),
                    int(labels[place]),
                    int(predicted[place]),
                    float(chances[place]),
                    images[place].cpu().clone(),
                )
            )
    return found


def keep_worst(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """The most wrong of several batches."""
    return heapq.nlargest(MOST, mistakes, key=_order)


def gather_worst(mistakes: Sequence[Mistake], index: Index) -> list[dict[str, Any]]:
    """The most wrong of all ranks as JSON data, with a JPEG of each.

    To be called by all ranks together.
    """
    orders: list[list[tuple[float, int]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(orders, [_order(mistake) for mistake in mistakes])
    chosen = set(heapq.nlargest(MOST, (order for part in orders for order in part)))
    rows: list[list[dict[str, Any]]] = [[] for _ in orders]
    own = [_row(mistake, index) for mistake in mistakes if _order(mistake) in chosen]
    dist.all_gather_object(rows, own)
    return sorted((row for part in rows for row in part), key=lambda row: -float(row["loss"]))


def _order(mistake: Mistake) -> tuple[float, int]:
    return mistake.loss, -mistake.id


def _row(mistake: Mistake, index: Index) -> dict[str, Any]:
    starts = np.cumsum([0, *index.counts])
    shard = int(np.searchsorted(starts, mistake.id, side="right")) - 1
    small = resize(mistake.image, [_SIDE, _SIDE], antialias=True).permute(1, 2, 0)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(small.numpy()))
    return {
        "sample": f"{index.shards[shard].name}: sample {mistake.id - starts[shard]}",
        "label": mistake.label,
        "predicted": mistake.predicted,
        "confidence": mistake.confidence,
        "loss": mistake.loss,
        "jpeg": base64.b64encode(jpeg).decode(),
    }
