"""Batches that a rank reads for training and evaluation, and the blending of training batches."""

from collections.abc import Iterable

import numpy as np

from worker.data.augment import Augmentation
from worker.data.batch_requests import Request, Work
from worker.data.epoch_plan import Ids, split
from worker.data.mixup import Blend, draw_blend
from worker.job.evaluation_feed import EvaluationFeed
from worker.job.job import Job
from worker.numbers import ceil_div
from worker.ranks.rank import Rank

TRAIN, VAL, TEST = "train", "val", "test"


class BatchFeed:
    """Batches as pure functions of the job and the rank, the same in all processes of the rank.

    If batches are blended, each has one more sample at its head (`led`): the one before its first.

    Args:
        job: The job.
        rank: This rank.
        on_gpu: Whether the rank has a GPU, which evaluates larger batches.
    """

    def __init__(self, job: Job, rank: Rank, *, on_gpu: bool) -> None:
        settings, seed = job.manifest.data.augment, job.manifest.train.seed
        self._job = job
        self._rank = rank
        self._settings = settings
        self._augmentation = Augmentation(job.preprocessing.at(job.train_size), settings, seed)
        self.evaluation = EvaluationFeed(job.preprocessing, on_gpu=on_gpu)
        """The batches of images that are evaluated."""
        self.led = int(bool(settings.mixup or settings.cutmix))

    @property
    def most_images(self) -> int:
        """The size of the largest batch that this rank may read."""
        batch_size = self._job.manifest.train.batch_size
        share = ceil_div(batch_size, self._rank.world_size) + self.led
        return max(share, self.evaluation.most_images)

    def work(self, request: Request) -> Work:
        """Return the batches that a request asks for, and how to prepare them."""
        if request.samples is None:
            return Work(
                batches=self._training(request.epoch, request.start),
                prepare_for=self._augmentation.prepare_for(request.epoch),
                size=self._job.train_size,
                lead=self.led,
            )
        return self.evaluation.work(request)

    def blend(self, step: int) -> Blend | None:
        """Return the blend, if any, of global batch `step`, counted from the job's start."""
        if not self.led:
            return None
        side, seed = self._job.train_size, self._job.manifest.train.seed
        return draw_blend(
            mixup=self._settings.mixup,
            cutmix=self._settings.cutmix,
            side=side,
            seed=seed,
            step=step,
        )

    def _training(self, epoch: int, start: int) -> Iterable[Ids]:
        """Yield this rank's parts of an epoch's global batches, from the epoch's step `start`."""
        rank, world_size = self._rank.rank, self._rank.world_size
        plan = self._job.plan(epoch)
        for step in range(start, plan.steps):
            ids = plan.batch(step, rank, world_size)
            if self.led and len(ids):
                # The sample before this part is its first partner; see `worker.data.mixup`. For
                # rank 0, index -1 is the last sample of the batch, as the pairs form a ring. A rank
                # without samples needs none. Indexing with a list makes the result an array, [1].
                whole = plan.batch(step)
                before = whole[[split(len(whole), rank, world_size)[0] - 1]]
                ids = np.concatenate([before, ids])
            yield ids
