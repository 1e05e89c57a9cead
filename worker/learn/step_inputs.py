"""Inputs of a step: the valid images, on the device, with their labels and loss weights."""

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

    If there are no images, a placeholder image of weight 0 is used, since every rank must compute
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
    """Share of an image's own label in the blend; the partner's label gets the rest."""
    count: int
    """Number of images, not counting the placeholder."""

    def split(self, parts: int) -> Iterator["Inputs"]:
        """Yield the images in parts of about equal size."""
        columns = (self.images, self.labels, self.partners, self.weights)
        split = zip(*(column.tensor_split(parts) for column in columns), strict=True)
        for images, labels, partners, weights in split:
            yield _filled(images, labels, partners=partners, weights=weights, own=self.own)


def prepare(
    batch: Batch, blend: Blend | None, preprocessing: Preprocessing, upload: Uploader
) -> Inputs:
    """Move the valid images of a batch to the device, normalized and blended.

    Each image is blended with the one before it.

    Args:
        batch: Decoded images.
        blend: How to blend the images; None to leave them unblended.
        preprocessing: Normalization.
        upload: Copies tensors to the device.

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
    # `valid` is on the host, so neither the check nor `nonzero` waits for the device.
    if not valid.all():
        kept = upload.index(valid.nonzero().flatten())
        images, labels, partners = images[kept], labels[kept], partners[kept]
    weights = torch.ones(len(labels), device=upload.device)
    return _filled(
        images, labels, partners=partners, weights=weights, own=blend.own if blend else 1.0
    )


def prepare_features(batch: Batch, upload: Uploader) -> Inputs:
    """Move the valid features of a batch to the device; they need no normalization.

    Args:
        batch: A batch with features, [N, D], in place of images.
        upload: Copies tensors to the device.

    Returns:
        The features with their labels.
    """
    kept = batch.valid
    return plain_inputs(upload(batch.images[kept]), upload(batch.labels[kept]))


def plain_inputs(images: Tensor, labels: Tensor) -> Inputs:
    """Return images as they are, each with a weight of 1."""
    weights = torch.ones(len(labels), device=images.device)
    return _filled(images, labels, partners=labels, weights=weights, own=1.0)


def _filled(
    images: Tensor, labels: Tensor, *, partners: Tensor, weights: Tensor, own: float
) -> Inputs:
    """Return the inputs unchanged, or a placeholder image of weight 0 if there are none."""
    count = int(weights.numel())
    if not count:
        images = images.new_zeros(1, *images.shape[1:])
        labels, partners, weights = (x.new_zeros(1) for x in (labels, partners, weights))
    return Inputs(
        images=images, labels=labels, partners=partners, weights=weights, own=own, count=count
    )
