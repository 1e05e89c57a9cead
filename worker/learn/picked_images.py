"""Images of an evaluation for a person to look at: the most wrong, the least sure, and suspects."""

import base64
import heapq
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import resize

WRONG, UNSURE, SUSPECTS = "wrong", "unsure", "suspects"
MAX_PICTURES, MAX_SUSPECTS = 24, 100
MIN_SUSPICION = 0.9
"""Smallest probability of another class at which a label is suspected to be wrong."""
_SIDE = 128
_TAG = 1  # the ledger is sent with tag 0


@dataclass(frozen=True, kw_only=True)
class Pick:
    """An image that was picked."""

    score: float
    """What it was picked by; higher comes first."""
    id: int
    """Its sample id."""
    label: int
    """Its true class."""
    predicted: int
    """The predicted class."""
    confidence: float
    """The probability of the predicted class."""
    image: Tensor | None
    """The image as the model saw it, uint8 [3, S, S]; None if only its name matters."""


class Picker:
    """Picks the images of each kind over several batches.

    They stay on the device until the end: reading each batch back would stall the host every time.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Tensor, ...]] = {}

    def add(self, *, logits: Tensor, ids: Tensor, labels: Tensor, images: Tensor) -> None:
        """Add a batch of n images; among equal scores, the earlier image comes first.

        All tensors are on one device.

        Args:
            logits: Predictions, [n, classes].
            ids: Sample ids, int64 [n].
            labels: True classes, int64 [n].
            images: The images as the model saw them, uint8 [n, 3, S, S].
        """
        logits = logits.float()
        chances = logits.softmax(1)
        (confidence, second), (predicted, _) = (part.T for part in chances.topk(2))
        losses = F.cross_entropy(logits, labels, reduction="none")
        # Images that do not belong to a kind sort last and are left out in `found`, so that batches
        # keep their shape and the host need not know how many there are.
        right = predicted == labels
        scores = {
            WRONG: losses.masked_fill(right, -math.inf),
            UNSURE: second - confidence,
            SUSPECTS: confidence.masked_fill(right | (confidence < MIN_SUSPICION), -math.inf),
        }
        columns = (ids, labels, predicted, confidence)
        for kind, score in scores.items():
            shown = () if kind == SUSPECTS else (images,)
            batch = _first((score, *columns, *shown), kind)
            if kind in self._kept:
                pairs = zip(self._kept[kind], batch, strict=True)
                batch = _first(tuple(torch.cat(pair) for pair in pairs), kind)
            self._kept[kind] = batch

    def found(self) -> dict[str, list[Pick]]:
        """Return the images of each kind, highest score first."""
        return {kind: _picks(*self._kept.get(kind, ())) for kind in (WRONG, UNSURE, SUSPECTS)}


def _first(columns: tuple[Tensor, ...], kind: str) -> tuple[Tensor, ...]:
    """Return the rows with the highest values in the first column."""
    order = columns[0].argsort(descending=True, stable=True)[: _max_kept(kind)]
    return tuple(column[order] for column in columns)


def _max_kept(kind: str) -> int:
    return MAX_SUSPECTS if kind == SUSPECTS else MAX_PICTURES


def _picks(*columns: Tensor) -> list[Pick]:
    if not columns:
        return []
    scores, ids, labels, predicted, confidence = (kept.tolist() for kept in columns[:5])
    images = columns[5].cpu() if len(columns) > 5 else None
    return [
        Pick(
            score=score,
            id=ids[place],
            label=labels[place],
            predicted=predicted[place],
            confidence=confidence[place],
            image=images[place].clone() if images is not None else None,
        )
        for place, score in enumerate(scores)
        if score != -math.inf
    ]


def gather_picks(
    found: Mapping[str, Sequence[Pick]], name_of: Callable[[int], str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the picks of all ranks, by kind, as JSON data with JPEGs, on rank 0 only.

    All ranks must call it together; all but rank 0 get empty lists. Only ranks with one of the
    chosen images send any. `name_of` returns a readable name for a sample id.
    """
    return {kind: _gather(kind, picks, name_of) for kind, picks in found.items()}


def _gather(
    kind: str, picks: Sequence[Pick], name_of: Callable[[int], str]
) -> list[dict[str, Any]]:
    # Of a fixed size, as all_gather requires: padded with rows of -inf. float64 holds float32
    # scores and ids below 2**53 exactly, so that a rank finds its own picks in `chosen`.
    most = _max_kept(kind)
    own = torch.full((most, 2), -math.inf, dtype=torch.float64)
    for place, pick in enumerate(picks):
        own[place] = torch.tensor(_order(pick), dtype=torch.float64)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    orders = [{(score, number) for score, number in part.tolist()} for part in everyone]
    nothing = (-math.inf, -math.inf)
    chosen = set(heapq.nlargest(most, set().union(*orders) - {nothing}))
    rows = [_row(pick, name_of) for pick in picks if _order(pick) in chosen]
    # Every rank must arrive at the same owners, or rank 0 would wait for rows that nobody sends.
    owners = [rank for rank, part in enumerate(orders) if rank and part & chosen]
    if dist.get_rank() in owners:
        _send(rows)
    if dist.get_rank():
        return []
    rows += [row for rank in owners for row in _receive(rank)]
    return sorted(rows, key=lambda row: (-_sortable(float(row["score"])), row["id"]))


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


def _order(pick: Pick) -> tuple[float, int]:
    # A score that is not a number counts as the highest: all ranks must agree on the order.
    return _sortable(pick.score), -pick.id


def _sortable(score: float) -> float:
    return math.inf if math.isnan(score) else score


def _row(pick: Pick, name_of: Callable[[int], str]) -> dict[str, Any]:
    row = {
        "sample": name_of(pick.id),
        "id": pick.id,
        "label": pick.label,
        "predicted": pick.predicted,
        # JSON has no NaN, which a model that has diverged is confident with.
        "confidence": pick.confidence if math.isfinite(pick.confidence) else 0.0,
        "score": pick.score,
    }
    if pick.image is not None:
        small = resize(pick.image, [_SIDE, _SIDE], antialias=True).permute(1, 2, 0)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(small.numpy()))
        row["jpeg"] = base64.b64encode(jpeg).decode()
    return row
