"""The record that a run leaves in its store: which sample was trained on when, and evaluations.

The ledger is written in immutable pieces, one per commit and rank, always before the commit that
they lead to.
"""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.data.plan import Ids
from worker.store import Store

Confusion = npt.NDArray[np.int64]
"""[classes, classes], true by predicted."""


def ledger_name(attempt: int, first: int, stop: int, rank: int) -> str:
    """The object that holds what `rank` trained on in steps [first, stop)."""
    return f"records/{attempt:06d}/samples/{first:08d}-{stop:08d}-{rank:04d}.npy"


def confusion_name(attempt: int, step: int) -> str:
    """The object that holds the confusion matrix of an evaluation."""
    return f"records/{attempt:06d}/confusion/{step:08d}.npy"


def mistakes_name(attempt: int, step: int) -> str:
    """The object that holds the pictures that an evaluation got most wrong."""
    return f"records/{attempt:06d}/mistakes/{step:08d}.json"


def encode_array(array: npt.NDArray[np.int64]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class Recorder:
    """Keeps what one rank trains on, where `samples` says so, and writes it when asked."""

    def __init__(self, store: Store, attempt: int, rank: int, step: int, samples: bool) -> None:
        self._store = store
        self._attempt = attempt
        self._rank = rank
        self._first = step
        self._samples = samples
        self._rows: list[Ids] = []

    def trained(self, step: int, ids: Ids, valid: npt.NDArray[np.bool_]) -> None:
        """Note that these samples are in what step `step` (0-based) did to the weights.

        One that was planned and left out as bad is written as -1 - id.
        """
        if self._samples:
            rows = np.where(valid, ids, -1 - ids)
            self._rows.append(np.stack([np.full_like(ids, step), rows], axis=1))

    def evaluated(
        self, step: int, matrix: npt.NDArray[np.int64], mistakes: list[dict[str, Any]]
    ) -> None:
        """Keep the confusion matrix, [classes, classes], true by predicted, and what was worst."""
        if self._rank == 0:
            self._store.put(confusion_name(self._attempt, step), encode_array(matrix))
            rows = json.dumps(mistakes).encode()
            self._store.put(mistakes_name(self._attempt, step), rows)

    def take(self, step: int) -> Callable[[], None]:
        """Everything noted before `step`, as a call that writes it."""
        rows, name = self._rows, ledger_name(self._attempt, self._first, step, self._rank)
        first, self._first, self._rows = self._first, step, []

        def write() -> None:
            if rows and step > first:
                self._store.put(name, encode_array(np.concatenate(rows)))

        return write
