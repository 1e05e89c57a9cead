"""The loaders of a training job."""

import torch

from worker.job.job import Job
from worker.job.loaders import Loaders, LoadPlan, read_set
from worker.numbers import ceil_div
from worker.ranks.rank import Rank
from worker.train.batches import TEST, TRAIN, VAL, BatchFeed

JobLoaders = Loaders[BatchFeed]


def open_loaders(job: Job, rank: Rank, device: torch.device) -> JobLoaders:
    """Open the loaders of a rank, before its process starts CUDA or any thread.

    Args:
        job: The job.
        rank: This rank.
        device: The device that the batches are for.
    """
    lanes = ceil_div(job.lanes, rank.world_size)
    sets = {TRAIN: read_set(job.train, lanes)}
    for name, evaluated in ((VAL, job.val), (TEST, job.test)):
        if evaluated:
            # One lane: evaluation reads the samples in the order of the shards.
            sets[name] = read_set(evaluated, 1)
    plan = LoadPlan(
        sets=sets,
        feed=BatchFeed(job, rank, on_gpu=device.type == "cuda"),
        spec=job.image_spec,
        size=max(job.train_size, job.preprocessing.crop_size),
        lanes=job.lanes,
        on_gpu=job.manifest.data.decoder == "cuda",
    )
    return Loaders(plan, rank, device)
