"""The head trained first, on features that are computed once: linear probing.

A random head's gradient is about a hundred times the largest of any block, relative to the weights,
and hides what the blocks need.
"""

import contextlib
import logging
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from worker.data.batch_requests import Request
from worker.data.epoch_plan import Ids, sample_ids, split
from worker.job.job import Job
from worker.learn.linear_probe import fit_head
from worker.learn.predictor import Predictor
from worker.logs import count
from worker.ranks.rank import Rank
from worker.train.batches import TRAIN
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
    ids = _first_images(job)
    features, labels = _features(
        job, model, _share(ids, rank), loaders=loaders, precision=precision, advance=advance
    )
    head = model.get_submodule(job.backbone.head)
    assert isinstance(head, nn.Linear | nn.Conv2d)  # noqa: S101 -- `find_heads` finds no other
    if rank.world_size > 1:
        parts: list[tuple[Tensor, Tensor]] = [(features, labels)] * rank.world_size
        dist.all_gather_object(parts, (features, labels))
        features = torch.cat([part for part, _ in parts])
        labels = torch.cat([part for _, part in parts])
    if len(labels) < _MIN_IMAGES:
        return
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


def _share(ids: Ids, rank: Rank) -> Ids:
    start, stop = split(len(ids), rank.rank, rank.world_size)
    return ids[start:stop]


def _features(
    job: Job,
    model: nn.Module,
    ids: Ids,
    *,
    loaders: JobLoaders,
    precision: torch.dtype | None,
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Return the features of images, float32 [N, D], and their labels, on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    predict = Predictor(model, precision, job.backbone.head)
    kept: list[tuple[Tensor, Tensor]] = []
    with contextlib.closing(loaders.batches(Request(dataset=TRAIN, samples=ids))) as batches:
        for batch in batches:
            valid = batch.valid.clone()
            if valid.any():
                images = job.preprocessing.normalize(batch.images[valid].to(device))
                _, found = predict(images)
                assert found is not None  # noqa: S101 -- the head was named
                kept.append((found.float().cpu(), batch.labels[valid].clone()))
            advance(len(batch.ids))
    predict.close()
    if not kept:  # fewer images than ranks
        head = model.get_parameter(f"{job.backbone.head}.weight")
        return torch.empty(0, head.shape[1]), torch.empty(0, dtype=torch.int64)
    return torch.cat([part for part, _ in kept]), torch.cat([part for _, part in kept])
