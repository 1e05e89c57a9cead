"""The head trained first, on features that are computed once: linear probing.

A random head's gradient is about a hundred times the largest of any block, relative to the weights,
and hides what the blocks need.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from worker.data.epoch_plan import Ids, sample_ids
from worker.job.job import Job
from worker.learn.linear_probe import fit_head
from worker.logs import count
from worker.ranks.rank import Rank
from worker.train.head_features import compute_features
from worker.train.loaders import JobLoaders

log = logging.getLogger(__name__)

_MAX_IMAGES = 4096
_MIN_IMAGES = 2


def train_head(
    job: Job,
    model: nn.Module,
    rank: Rank,
    loaders: JobLoaders,
    *,
    precision: torch.dtype | None,
    advance: Callable[[int], None],
) -> None:
    """Fit the head to the features of training images, without augmentation.

    Called by all ranks together; the result is the same on any number of them. SqueezeNet's
    convolutional head is fitted to the mean of its inputs over the image. Auxiliary heads stay
    random.

    Args:
        job: The job.
        model: Its model, on the device, with pretrained weights.
        rank: This rank.
        loaders: The started loaders.
        precision: Dtype of the forward pass; None for fp32.
        advance: Called with the number of images of each batch.
    """
    found = compute_features(
        job,
        model,
        _first_images(job),
        rank=rank,
        loaders=loaders,
        precision=precision,
        advance=advance,
    )
    features, labels = found.features[found.valid], found.labels[found.valid]
    if len(labels) < _MIN_IMAGES:
        return
    head = model.get_submodule(job.backbone.head)
    assert isinstance(head, nn.Linear | nn.Conv2d)  # noqa: S101 -- `find_heads` finds no other
    weight = head.weight.detach().cpu()
    bias = None if head.bias is None else head.bias.detach().cpu()
    fitted, shift = fit_head(features, labels, weight.flatten(1), bias)
    with torch.no_grad():
        head.weight.copy_(fitted.view_as(weight))
        if head.bias is not None and shift is not None:
            head.bias.copy_(shift)
    if rank.leads:
        log.info("the head is trained first, on the features of %s", count(len(labels), "image"))


def _first_images(job: Job) -> Ids:
    """Return the images of the first batches of the job, each once, in ascending order."""
    plan = job.plan(0)
    found: list[int] = []
    for step in range(plan.steps):
        if len(found) >= _MAX_IMAGES:
            break
        found += sample_ids(plan.batch(step)).tolist()
    return np.unique(found[:_MAX_IMAGES]).astype(np.int64)
