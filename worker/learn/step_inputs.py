"""The inputs of a step: sound images on the device, with the labels that they count for."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.data.loader import Batch
from worker.data.mixup import Blend, partners_of
from worker.data.preprocessing import Preprocessing
from worker.ranks.device_transfer import Uploader


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Images with their labels.

    If there is no image at all, one of weight 0 takes its place, as all ranks must compute
    something.
    """

    images: Tensor
    """Normalized, float32 [N, 3, S, S]."""
    labels: Tensor
    """int64 [N]."""
    partners: Tensor
    """Labels of the blended images' partners, int64 [N]."""
    weights: Tensor
    """Weight of each image in the loss, float32 [N]."""
    own: float
    """The share of an image in its label; the partner has the rest."""
    count: int
    """Images that count."""

    def split(self, parts: int) -> Iterator["Inputs"]:
        """Yield this many parts of about equal size."""
        columns = (self.images, self.labels, self.partners, self.weights)
        split = zip(*(column.tensor_split(parts) for column in columns), strict=True)
        for images, labels, partners, weights in split:
            yield _filled(images, labels, partners=partners, weights=weights, own=self.own)


def prepare(
    batch: Batch, blend: Blend | None, preprocessing: Preprocessing, upload: Uploader
) -> Inputs:
    """Put the sound images of a batch on the device, normalized and blended.

    The partner of an image is the one before it.

    Args:
        batch: Decoded images.
        blend: How to blend them; None to leave them.
        preprocessing: Normalization.
        upload: Copies to the device.

    Returns:
        Normalized images with their labels.
    """
    images = preprocessing.normalize(upload(batch.images))
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
    return _filled(
        images, labels, partners=partners, weights=weights, own=blend.own if blend else 1.0
    )


def _filled(
    images: Tensor, labels: Tensor, *, partners: Tensor, weights: Tensor, own: float
) -> Inputs:
    """Return the inputs as they are, or with an image of weight 0 if there is none."""
    count = int(weights.numel())
    if not count:
        images = images.new_zeros(1, *images.shape[1:])
        labels, partners, weights = (x.new_zeros(1) for x in (labels, partners, weights))
    return Inputs(
        images=images, labels=labels, partners=partners, weights=weights, own=own, count=count
    )
