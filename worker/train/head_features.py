"""The features that the head gets, computed once while everything below it is frozen."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from worker.data.batch_requests import Request
from worker.data.epoch_plan import EpochPlan, Ids, sample_ids
from worker.data.loader import Bad, Batch
from worker.job.job import Job
from worker.learn.predictor import Predictor
from worker.ranks.rank import Rank
from worker.train.batches import TRAIN
from worker.train.loaders import JobLoaders


@dataclass(frozen=True, kw_only=True)
class HeadFeatures:
    """The features of some images, in evaluation mode and without augmentation, on the CPU."""

    ids: Ids
    """Sample ids, [N], in ascending order."""
    features: Tensor
    """float32 [N, D]; zero for a bad sample."""
    labels: Tensor
    """int64 [N]."""
    valid: Tensor
    """bool [N]; False for a bad sample."""
    bad: dict[int, Bad]
    """The bad samples by id."""

    def batches(self, plan: EpochPlan, start: int, rank: Rank) -> Iterator[Batch]:
        """Yield a rank's parts of an epoch's batches, with features in place of images.

        Args:
            plan: The plan of the epoch.
            start: The step within the epoch to start from.
            rank: The rank.
        """
        for step in range(start, plan.steps):
            ids = sample_ids(plan.batch(step, rank.rank, rank.world_size))
            rows = torch.from_numpy(np.searchsorted(self.ids, ids))
            yield Batch(
                images=self.features[rows],
                labels=self.labels[rows],
                ids=ids,
                valid=self.valid[rows],
                bad=[self.bad[number] for number in ids.tolist() if number in self.bad],
            )


def compute_features(
    job: Job,
    model: nn.Module,
    ids: Ids,
    *,
    rank: Rank,
    loaders: JobLoaders,
    precision: torch.dtype | None,
    advance: Callable[[int], None],
) -> HeadFeatures:
    """Compute the features of images; all ranks share the work, and all get all of them.

    Ranks compute whole batches, so the features are the same on any number of ranks. SqueezeNet's
    convolutional head gets the mean of its inputs over the image. The model is left in evaluation
    mode.

    Args:
        job: The job.
        model: Its model, on the device.
        ids: Ids of the samples, in ascending order.
        rank: This rank.
        loaders: The started loaders.
        precision: Dtype of the forward pass; None for fp32.
        advance: Called with the number of images of each batch.
    """
    share = loaders.feed.evaluation.share(rank, len(ids))
    own = _compute(
        job,
        model,
        ids[share.start : share.stop],
        loaders=loaders,
        precision=precision,
        advance=advance,
    )
    parts = [own] * rank.world_size
    if rank.world_size > 1:
        dist.all_gather_object(parts, own)
    return HeadFeatures(
        ids=ids,
        features=torch.cat([part.features for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        bad={number: bad for part in parts for number, bad in part.bad.items()},
    )


def _compute(
    job: Job,
    model: nn.Module,
    ids: Ids,
    *,
    loaders: JobLoaders,
    precision: torch.dtype | None,
    advance: Callable[[int], None],
) -> HeadFeatures:
    device = next(model.parameters()).device
    width = model.get_parameter(f"{job.backbone.head}.weight").shape[1]
    features = torch.zeros(len(ids), width)
    labels = torch.zeros(len(ids), dtype=torch.int64)
    valid = torch.zeros(len(ids), dtype=torch.bool)
    bad: dict[int, Bad] = {}
    model.eval()
    predict = Predictor(model, precision, job.backbone.head)
    done = 0
    with contextlib.closing(loaders.batches(Request(dataset=TRAIN, samples=ids))) as batches:
        for batch in batches:
            rows = slice(done, done + len(batch.ids))
            done = rows.stop
            sound = batch.valid.clone()
            labels[rows], valid[rows] = batch.labels, sound
            bad |= {each.id: each for each in batch.bad}
            if sound.any():
                images = job.preprocessing.normalize(batch.images[sound].to(device))
                _, found = predict(images)
                assert found is not None  # noqa: S101 -- the head was named
                features[rows][sound] = found.float().cpu()
            advance(len(batch.ids))
    predict.close()
    return HeadFeatures(ids=ids, features=features, labels=labels, valid=valid, bad=bad)
