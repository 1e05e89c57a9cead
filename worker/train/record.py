"""The record that a run leaves in its store: history, and which sample was trained on when.

Written in immutable pieces, one per commit and rank, always before the commit that they lead to.
"""

import io
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.data.plan import Ids
from worker.store import Store


def ledger_name(attempt: int, first: int, stop: int, rank: int) -> str:
    """The object that holds what `rank` trained on in steps [first, stop)."""
    return f"records/{attempt:06d}/samples/{first:08d}-{stop:08d}-{rank:04d}.npy"


def encode_array(array: npt.NDArray[np.int64]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class Recorder:
    """Collects what one rank has to say and writes it when asked.

    Rank 0 keeps the history; with `samples`, every rank keeps its rows (step, sample id).
    """

    def __init__(self, store: Store, attempt: int, rank: int, step: int, samples: bool) -> None:
        self._store = store
        self._attempt = attempt
        self._rank = rank
        self._first = step
        self._samples = samples
        self._events: list[dict[str, Any]] = []
        self._pieces = 0
        self._rows: list[Ids] = []

    def event(self, kind: str, **fields: Any) -> None:
        """Note something for the history."""
        if self._rank == 0:
            self._events.append({"time": round(time.time(), 3), "event": kind, **fields})

    def trained(self, step: int, ids: Ids, valid: npt.NDArray[np.bool_]) -> None:
        """Note that these samples are in what step `step` (0-based) did to the weights.

        One that was planned and left out as bad is written as -1 - id.
        """
        if self._samples:
            rows = np.where(valid, ids, -1 - ids)
            self._rows.append(np.stack([np.full_like(ids, step), rows], axis=1))

    def confusion(self, step: int, matrix: npt.NDArray[np.int64]) -> None:
        """Keep the confusion matrix of an evaluation, [classes, classes], true by predicted."""
        if self._rank == 0:
            name = f"records/{self._attempt:06d}/confusion/{step:08d}.npy"
            self._store.put(name, encode_array(matrix))

    def take(self, step: int) -> Callable[[], None]:
        """Everything noted before `step`, as a call that writes it."""
        pieces: list[tuple[str, Callable[[], bytes]]] = []
        if self._events:
            events = self._events
            # Numbered, as an evaluation and the end of a job come without a step between them.
            name = f"records/{self._attempt:06d}/history/{self._pieces:06d}.jsonl"
            pieces.append((name, lambda: "".join(f"{json.dumps(e)}\n" for e in events).encode()))
            self._pieces += 1
            self._events = []
        if self._rows and step > self._first:
            rows = self._rows
            name = ledger_name(self._attempt, self._first, step, self._rank)
            pieces.append((name, lambda: encode_array(np.concatenate(rows))))
            self._rows = []
        self._first = step

        def write() -> None:
            for name, data in pieces:
                self._store.put(name, data())

        return write
