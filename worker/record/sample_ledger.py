"""The ledger of the samples that each step trained on.

The ledger is written before each commit, by one in every eight ranks. The last piece grows until it
is large, since writing a new object at every commit would leave too many of them.
"""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from worker.data.epoch_plan import Ids
from worker.layout import ledger_name
from worker.ranks.process_group import meaningful_errors
from worker.ranks.rank import Rank
from worker.store import Store

_PIECE_BYTES = 1 << 20  # 64 Ki rows
_RANKS_PER_PIECE = 8
_NOTHING = -1  # in place of a step: marks an empty row
_NO_ROWS = np.empty((0, 2), np.int64)


def encode_array(array: npt.NDArray[np.int64]) -> bytes:
    """Return an array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class Recorder:
    """Recorder of the samples that a rank trains on.

    The first of every eight ranks writes for all eight: with thousands of ranks, an object per rank
    and commit would add up to millions a day.

    Args:
        store: The output of the job.
        attempt: The number of this attempt.
        rank: This rank.
        step: The step at which the attempt begins.
        share: The maximum number of images of a global batch that a rank trains on.
        samples: Whether to keep the ledger.
    """

    def __init__(
        self, store: Store, attempt: int, rank: Rank, *, step: int, share: int, samples: bool
    ) -> None:
        self._store = store
        self._attempt = attempt
        self._rank = rank
        self._first = step
        self._share = share
        self._samples = samples
        self._rows: list[Ids] = []
        # The first step and the rows of the last object written, if that object may still grow.
        # Only `write` changes this field, and only one save is under way at a time.
        self._piece: tuple[int, Ids] | None = None

    def trained(self, step: int, ids: Ids, valid: npt.NDArray[np.bool_]) -> None:
        """Record the samples of a step.

        A sample that was planned but left out as bad is written as -1 - id.

        Args:
            step: The global step, from 0.
            ids: Sample ids, [N].
            valid: The mask of the samples that were trained on, [N].
        """
        if self._samples:
            rows = np.where(valid, ids, -1 - ids)
            self._rows.append(np.stack([np.full_like(ids, step), rows], axis=1))

    def take(self, step: int) -> Callable[[], None]:
        """Return a function that writes everything recorded before `step`.

        All ranks must call this together; the returned functions may run in other threads.
        """
        rows, first = self._rows, self._first
        self._first, self._rows = step, []
        if not self._samples or step <= first:
            return lambda: None
        # Transfers begin here, in the calling thread, so that they match on all ranks; only the
        # waiting is left to the returned function. All transfers of a save have the same size,
        # `room` rows, which each rank can compute without asking the others.
        leader = self._rank.rank // _RANKS_PER_PIECE * _RANKS_PER_PIECE
        room = (step - first) * self._share
        if self._rank.rank != leader:
            return _send(rows, room, leader)
        stop = min(leader + _RANKS_PER_PIECE, self._rank.world_size)
        receive = _receive(range(leader + 1, stop), room)

        def write() -> None:
            # The name contains the first step, so a growing piece replaces its earlier version.
            begun, kept = self._piece or (first, _NO_ROWS)
            found = np.concatenate([kept, *rows, *receive()])
            if len(found) > len(kept):
                self._store.put(ledger_name(self._attempt, begun, leader), encode_array(found))
            self._piece = (begun, found) if found.nbytes < _PIECE_BYTES else None

        return write


def ranks_that_write(world_size: int) -> range:
    """Return the ranks that write the ledger, each for itself and those up to the next writer."""
    return range(0, world_size, _RANKS_PER_PIECE)


def _send(rows: list[Ids], room: int, leader: int) -> Callable[[], None]:
    """Start sending at most `room` rows, [n, 2], to a rank; returns a function that waits."""
    padded = torch.full((room, 2), _NOTHING, dtype=torch.int64)
    if rows:
        own = np.concatenate(rows)
        padded[: len(own)] = torch.from_numpy(own)
    work = dist.isend(padded, leader)

    def wait() -> None:
        if work:
            with meaningful_errors():
                work.wait()

    return wait


def _receive(ranks: range, room: int) -> Callable[[], list[Ids]]:
    """Start receiving rows from these ranks; returns a function that waits for them."""
    coming = []
    for rank in ranks:
        padded = torch.empty((room, 2), dtype=torch.int64)
        coming.append((padded, dist.irecv(padded, rank)))

    def wait() -> list[Ids]:
        with meaningful_errors():
            for _, work in coming:
                if work:
                    work.wait()
        pieces = [padded.numpy() for padded, _ in coming]
        return [piece[piece[:, 0] != _NOTHING] for piece in pieces]

    return wait
