"""The training batches of one rank, and how they are blended."""

from collections.abc import Generator

import numpy as np

from worker.data.augment import Augmentation
from worker.data.loader import Batch, Loader
from worker.data.mix import Blend, draw_blend
from worker.data.plan import EpochPlan, Ids, split
from worker.data.preprocessing import Preprocessing
from worker.train.job import Job
from worker.train.rank import Rank

_EVALUATION_BATCH = 64


class Feed:
    """Supplies what `Engine.step` needs, for any step of the job.

    Where batches are blended, each is `led` by the sample before its first.
    """

    def __init__(self, job: Job, rank: Rank, loader: Loader) -> None:
        settings, seed = job.manifest.data.augment, job.manifest.train.seed
        self._job = job
        self._rank = rank
        self._loader = loader
        self._settings = settings
        self._augmentation = Augmentation(job.preprocessing, settings, seed)
        self.led = int(bool(settings.mixup or settings.cutmix))

    def batches(self, plan: EpochPlan, epoch: int, start: int) -> Generator[Batch]:
        """This rank's parts of an epoch's global batches, from step `start` of it."""
        return self._loader.batches(
            (self._share(plan, step) for step in range(start, plan.steps)),
            self._augmentation.prepare_for(epoch),
            self._job.preprocessing.crop_size,
        )

    def blend(self, step: int) -> Blend | None:
        """How global batch `step`, counted from the job's start, is blended."""
        if not self.led:
            return None
        side, seed = self._job.preprocessing.crop_size, self._job.manifest.train.seed
        return draw_blend(self._settings.mixup, self._settings.cutmix, side, seed, step)

    def _share(self, plan: EpochPlan, step: int) -> Ids:
        rank, world_size = self._rank.rank, self._rank.world_size
        ids = plan.batch(step, rank, world_size)
        if not self.led or not len(ids):
            return ids
        whole = plan.batch(step)
        return np.concatenate([whole[[split(len(whole), rank, world_size)[0] - 1]], ids])


def evaluation_batches(loader: Loader, ids: Ids, preprocessing: Preprocessing) -> Generator[Batch]:
    """These samples in order, as the weights' preset prepares them."""
    return loader.batches(
        (ids[at : at + _EVALUATION_BATCH] for at in range(0, len(ids), _EVALUATION_BATCH)),
        lambda _: lambda place, image, out: preprocessing.evaluated(image, out),
        preprocessing.crop_size,
    )
