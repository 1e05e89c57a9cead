"""Batches of images as they are evaluated: in order, in sizes that do not depend on the ranks."""

from collections.abc import Iterable, Sequence

import numpy as np

from worker.data.batch_requests import Request, Work
from worker.data.epoch_plan import Ids, split
from worker.data.loader import Prepare
from worker.data.preprocessing import Preprocessing
from worker.numbers import ceil_div
from worker.ranks.rank import Rank

_BATCH, _BATCH_ON_GPU = 64, 256
_BYTES = 64 << 20  # per batch; with a GPU, several are page-locked


class EvaluationFeed:
    """Batches as a pure function of the samples that are requested.

    Args:
        preprocessing: How the images are prepared.
        on_gpu: Whether the rank has a GPU, which evaluates larger batches.
    """

    def __init__(self, preprocessing: Preprocessing, *, on_gpu: bool) -> None:
        self._preprocessing = preprocessing
        self.most_images = _BATCH
        """The size of a batch; the last one may be smaller."""
        if on_gpu:
            # Three bytes per pixel: images are uint8 until they are on the device.
            fitting = max(1, _BYTES // (3 * preprocessing.crop_size**2))
            self.most_images = min(_BATCH_ON_GPU, fitting)

    def share(self, rank: Rank, samples: int) -> range:
        """Return the numbers of the samples that a rank evaluates, of `samples` in all.

        Ranks get whole batches, so that these are the same on any number of ranks: on most devices,
        the last digits of a prediction depend on the size of the batch.
        """
        size = self.most_images
        start, stop = split(ceil_div(samples, size), rank.rank, rank.world_size)
        return range(start * size, min(samples, stop * size))

    def work(self, request: Request) -> Work:
        """Return the batches of the samples that a request lists, and how to prepare them."""
        return Work(
            batches=self._batches(request.samples),
            prepare_for=self._prepare_for,
            size=self._preprocessing.crop_size,
            in_order=True,
        )

    def _batches(self, samples: Sequence[int] | Ids | None) -> Iterable[Ids]:
        ids = np.asarray(() if samples is None else samples, dtype=np.int64)
        size = self.most_images
        return (ids[at : at + size] for at in range(0, len(ids), size))

    def _prepare_for(self, ids: Ids) -> Prepare:
        """Return a function that prepares images as the weights' preset does."""
        return lambda place, image, out: self._preprocessing.evaluated(image, out)
