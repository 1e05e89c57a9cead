"""Batches that a rank reads for training and evaluation, and the blending of training batches."""

from collections.abc import Iterable

import numpy as np

from worker.data.augment import Augmentation
from worker.data.batch_requests import Request, Work
from worker.data.epoch_plan import Ids, split
from worker.data.loader import Prepare
from worker.data.mixup import Blend, draw_blend
from worker.job.job import Job
from worker.numbers import ceil_div
from worker.ranks.rank import Rank

TRAIN, VAL = "train", "val"
_EVALUATION_BATCH, _EVALUATION_BATCH_ON_GPU = 64, 256
_EVALUATION_BYTES = 64 << 20  # per batch; with a GPU, several are page-locked


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
        self._augmentation = Augmentation(job.preprocessing, settings, seed)
        self._evaluation_batch = _EVALUATION_BATCH
        if on_gpu:
            # Three bytes per pixel: images are uint8 until they are on the device.
            fitting = max(1, _EVALUATION_BYTES // (3 * job.preprocessing.crop_size**2))
            self._evaluation_batch = min(_EVALUATION_BATCH_ON_GPU, fitting)
        self.led = int(bool(settings.mixup or settings.cutmix))

    @property
    def most_images(self) -> int:
        """The size of the largest batch that this rank may read."""
        batch_size = self._job.manifest.train.batch_size
        share = ceil_div(batch_size, self._rank.world_size) + self.led
        return max(share, self._evaluation_batch)

    def work(self, request: Request) -> Work:
        """Return the batches that a request asks for, and how to prepare them."""
        if request.samples is None:
            return Work(
                batches=self._training(request.epoch, request.start),
                prepare_for=self._augmentation.prepare_for(request.epoch),
                lead=self.led,
            )
        return Work(
            batches=self._evaluation(request.samples), prepare_for=self._evaluated, in_order=True
        )

    def blend(self, step: int) -> Blend | None:
        """Return the blend, if any, of global batch `step`, counted from the job's start."""
        if not self.led:
            return None
        side, seed = self._job.preprocessing.crop_size, self._job.manifest.train.seed
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

    def _evaluation(self, samples: Iterable[int]) -> Iterable[Ids]:
        ids = np.asarray(samples, dtype=np.int64)
        size = self._evaluation_batch
        return (ids[at : at + size] for at in range(0, len(ids), size))

    def _evaluated(self, ids: Ids) -> Prepare:
        """Return a function that prepares images as the weights' preset does."""
        preprocessing = self._job.preprocessing
        return lambda place, image, out: preprocessing.evaluated(image, out)
