"""What a step computes on: sound images on the device, with the labels that they count for."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.data.loader import Batch
from worker.data.mix import Blend, partners_of
from worker.data.preprocessing import Preprocessing
from worker.train.device import Uploader

_SMALLEST = 2  # BatchNorm cannot train on one image of one pixel


@dataclass(frozen=True)
class Inputs:
    """Images, float32 [N, 3, S, S], and per image, [N]: label, partner's label, weight.

    The label of an image counts `own`, that of its partner the rest; the weight is 0 for what only
    fills up.
    """

    images: Tensor
    labels: Tensor
    partners: Tensor
    weights: Tensor
    own: float

    def split(self, size: int) -> Iterator["Inputs"]:
        """Parts of about equal size, at most `size` images each."""
        count = -(-len(self.labels) // size)
        columns = (self.images, self.labels, self.partners, self.weights)
        parts = zip(*(column.tensor_split(count) for column in columns), strict=True)
        for images, labels, partners, weights in parts:
            yield _filled(images, labels, partners, weights, self.own)


def prepare(
    batch: Batch, blend: Blend | None, preprocessing: Preprocessing, upload: Uploader
) -> Inputs:
    """The sound images of a batch, blended where each has a partner, the one before it."""
    images = preprocessing.normalise(upload(batch.images))
    labels = partners = upload(batch.labels)
    valid = batch.valid
    if blend and len(valid):
        others = upload.index(partners_of(valid))
        images = blend.apply(images[1:], images[others])
        labels, partners, valid = labels[1:], labels[others], valid[1:]
    if not valid.all():
        kept = upload.index(valid.nonzero().flatten())
        images, labels, partners = images[kept], labels[kept], partners[kept]
    weights = torch.ones(len(labels), device=upload.device)
    return _filled(images, labels, partners, weights, blend.own if blend else 1.0)


def _filled(
    images: Tensor, labels: Tensor, partners: Tensor, weights: Tensor, own: float
) -> Inputs:
    """As they are, or with images of weight 0 where there are too few to train on."""
    count = len(labels)
    if count >= _SMALLEST:
        return Inputs(images, labels, partners, weights, own)
    fill = images if count else images.new_zeros(_SMALLEST, *images.shape[1:])
    labels, partners = (
        torch.cat([x, x if count else x.new_zeros(_SMALLEST)]) for x in (labels, partners)
    )
    weights = torch.cat([weights, weights.new_zeros(len(fill))])
    return Inputs(torch.cat([images, fill]), labels, partners, weights, own)
