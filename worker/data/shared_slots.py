"""Shared memory for the batches of a rank and its child processes."""

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.data.epoch_plan import Ids, sample_ids
from worker.data.loader import Batch
from worker.memory import lock_pages


class Slots:
    """Shared memory for `count` batches of up to `images` images, `size` pixels a side.

    The memory is anonymous and allocated before the processes are forked: it has no name that could
    be left behind, is not limited by /dev/shm, and occupies only the pages written to.

    Args:
        count: Number of batches that fit into the memory.
        images: Maximum number of images in a batch.
        size: Width and height of the images, in pixels.
    """

    def __init__(self, count: int, images: int, size: int) -> None:
        self.count = count
        self._size = size
        self._images = _shared((count, images, size, size, 3), torch.uint8)
        self._labels = _shared((count, images), torch.int64)
        self._valid = _shared((count, images), torch.bool)

    def batch(self, index: int, ids: Ids, size: int | None = None) -> Batch:
        """Return a view of slot `index` modulo `count`, as the batch of the draws `ids`.

        Args:
            index: The number of the batch.
            ids: The draws.
            size: Width and height of its images, at most that of the slots; None for that.
        """
        slot, length, side = index % self.count, len(ids), size or self._size
        # The memory is NHWC; the permuted view is NCHW in channels_last memory format, without a
        # copy.
        pixels = self._images[slot].view(-1)[: length * side * side * 3]
        images = pixels.view(length, side, side, 3).permute(0, 3, 1, 2)
        return Batch(
            images=images,
            labels=self._labels[slot, :length],
            ids=sample_ids(ids),
            valid=self._valid[slot, :length],
        )

    def lock_pages(self) -> None:
        """Page-lock the memory for this process's GPU, which can then copy asynchronously.

        Raises `RuntimeError` if the system does not allow it.
        """
        # Not `_valid`: the host reads it, and it is never copied to the device.
        lock_pages(self._images)
        lock_pages(self._labels)


def _shared(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = torch.empty(0, dtype=dtype).element_size()
    for length in shape:
        size *= length
    # mmap refuses a length of 0. The tensor holds a reference to the mapping and so keeps it alive.
    memory = mmap.mmap(-1, max(1, size))
    return torch.frombuffer(memory, dtype=torch.uint8)[:size].view(dtype).view(*shape)
