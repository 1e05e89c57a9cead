"""Counting pairs of true and predicted classes, and the counts of all ranks."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from worker.judge.confusion import Rows, merge_rows

_MAX_WAITING = 1 << 20  # pairs kept on the device before they are counted
_TAG = 2  # tag 0 is for the ledger, tag 1 for mistakes


class Pairs:
    """Counter of a rank's pairs of true and predicted classes, with no device sync per batch."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._waiting: list[Tensor] = []
        self._size = 0
        self._counts = np.empty((0, 3), np.int64)

    def add(self, labels: Tensor, predicted: Tensor, counted: Tensor) -> None:
        """Count a batch.

        Args:
            labels: True classes, int64 [N].
            predicted: Predicted classes, int64 [N].
            counted: Images that count, bool [N].
        """
        # One int64 per image stands for the pair; `_count` splits it again with divmod.
        self._waiting.append(torch.where(counted, labels * self._classes + predicted, -1))
        self._size += len(labels)
        if self._size > _MAX_WAITING:
            self._count()

    def rows(self) -> Rows:
        """Return the rows counted so far."""
        self._count()
        return self._counts

    def _count(self) -> None:
        if self._waiting:
            # The copy to the host is the only synchronization with the device.
            keys, counts = torch.cat(self._waiting).cpu().unique(return_counts=True)
            keys, counts = keys[keys >= 0], counts[keys >= 0]
            fresh = np.stack([*np.divmod(keys.numpy(), self._classes), counts.numpy()], axis=1)
            self._counts = merge_rows([self._counts, fresh])
        self._waiting, self._size = [], 0


def gather_rows(own: Rows) -> Rows:
    """Return the merged rows of all ranks on rank 0, and a rank's own rows elsewhere.

    All ranks must call it together.
    """
    if dist.get_rank():
        # The count comes first, as the receiver must allocate a tensor of the right size.
        dist.send(torch.tensor([len(own)]), 0, tag=_TAG)
        if len(own):
            dist.send(torch.from_numpy(np.ascontiguousarray(own)), 0, tag=_TAG)
        return own
    parts = [own, *(_received(rank) for rank in range(1, dist.get_world_size()))]
    return merge_rows(parts)


def _received(rank: int) -> Rows:
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, rank, tag=_TAG)
    rows = torch.empty((int(size), 3), dtype=torch.int64)
    if len(rows):
        dist.recv(rows, rank, tag=_TAG)
    return rows.numpy()
