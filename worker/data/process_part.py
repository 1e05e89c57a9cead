"""The part of a rank's batches that one of its processes reads and decodes."""

import enum
import gc
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from worker.data.batch_requests import Request, Work
from worker.data.epoch_plan import Ids
from worker.data.loader import Batch, Loader
from worker.data.reader import Reader
from worker.data.shared_slots import Slots
from worker.errors import WorkerError
from worker.store.traffic_counts import Relay, listen


class Word(enum.Enum):
    """Messages between a rank and its processes, other than requests and batches."""

    SLOT_FREED = "a slot is free again"
    STOP = "the rest of the request is not wanted"
    ENDED = "the request is finished"


@dataclass(frozen=True, kw_only=True)
class ProcessPart:
    """A process's share of the decoding."""

    index: int
    """Index of the process, from 0."""
    count: int
    """The number of processes."""
    readers: Mapping[str, Reader]
    """Readers by data set."""
    loaders: Mapping[str, Loader]
    """Loaders by data set."""
    resolve: Callable[[Request], Work]
    """Expands a request into the batches it stands for."""
    slots: Slots
    """Shared memory that the batches are written to."""
    size: int
    """Side of the largest images, in pixels."""

    def batches(self, request: Request, wait_for_slot: Callable[[int], None]) -> Generator[Batch]:
        """Fill this part of every batch of a request.

        `wait_for_slot` is called before each batch.
        """
        work = self.resolve(request)
        reader = self.readers[request.dataset]
        index = 0

        def allocate(ids: Ids) -> Batch:
            nonlocal index
            wait_for_slot(index)
            index += 1
            return self.slots.batch(index - 1, ids, work.size)

        return self.loaders[request.dataset].batches(
            work.batches,
            work.prepare_for,
            size=work.size or self.size,
            allocate=allocate,
            places_of=lambda ids: work.places(ids, self.index, self.count, reader),
            keyed=request.keyed,
        )


def serve(connection: Connection, open_part: Callable[[], ProcessPart]) -> None:
    """Answer requests until the rank closes its end of the connection."""
    torch.set_num_threads(1)
    gc.freeze()  # so that memory inherited in the fork stays shared with the parent
    server = _Server(connection, open_part)
    try:
        # A STOP or SLOT_FREED that arrives after the last batch was reported is out of date and
        # skipped.
        while True:
            message = server.receive()
            if isinstance(message, Request):
                server.answer(message)
    except _RankGone:
        pass


class _Stopped(Exception):
    """The rank does not want the rest of a request."""


class _RankGone(Exception):
    """The rank has closed its end of the connection."""


class _Server:
    def __init__(self, connection: Connection, open_part: Callable[[], ProcessPart]) -> None:
        self._connection = connection
        # Before `open_part`, so that any requests it sends are counted too.
        self._traffic = Relay()
        listen(self._traffic)
        self._part = open_part()
        self._free = 0

    def receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise _RankGone from None

    def answer(self, request: Request) -> None:
        """Fill the batches of a request; report each one, and the end of the request."""
        # Batch i uses slot i modulo `count`, so the first `count` batches need not wait; each
        # SLOT_FREED then admits one more.
        self._free = self._part.slots.count
        try:
            with closing(self._part.batches(request, self._wait_for_slot)) as batches:
                for batch in batches:
                    self._send((batch.bad, batch.keys, self._traffic.take()))
                    # Read what has come in, so that STOP is noticed even if no slot is waited for.
                    while self._connection.poll():
                        self._listen()
        except _Stopped:
            pass
        except _RankGone:
            raise
        except WorkerError as error:
            self._send(error)
        except Exception:
            text = f"in a process that decodes images: {traceback.format_exc()}"
            self._send(RuntimeError(text))
        # Tasks of an aborted request may still be writing into slots that the next request will
        # use.
        self._part.loaders[request.dataset].drain()
        self._send(Word.ENDED)

    def _wait_for_slot(self, index: int) -> None:
        while index >= self._free:
            self._listen()

    def _listen(self) -> None:
        word = self.receive()
        if word is Word.STOP:
            raise _Stopped
        self._free += word is Word.SLOT_FREED

    def _send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise _RankGone from None
