"""Batches for one rank, decoded by child processes into shared memory.

Decoding threads in the training process would contend with training for the interpreter lock: on
an H100, 16 of them slowed ResNet-50 training from 3,435 to 536 images a second. Here a batch costs
the training process one message per child process, however many images the batch has.

The child processes are forked before CUDA is initialized or any thread is started, only read and
decode, and die with their parent.
"""

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence

from worker.data.batch_requests import Request, Work
from worker.data.loader import DECODE_AHEAD, Batch
from worker.data.process_part import ProcessPart, Word, serve
from worker.data.shared_slots import Slots
from worker.forks import Child
from worker.store.traffic_counts import replay

_HELD = 2
SLOTS = DECODE_AHEAD + _HELD + 1
"""Number of slots: one for the next batch, plus those decoded ahead and those still in use."""
_CLOSE_SECONDS = 2.0


class DecodeProcesses:
    """A rank's decoding processes, forked on creation.

    Args:
        parts: One function per process, which that process calls to set up its decoding.
        resolve: Expands a request into its batches, in this process and in the children.
        slots: Shared memory that the batches are written to.
    """

    def __init__(
        self,
        parts: Sequence[Callable[[], ProcessPart]],
        resolve: Callable[[Request], Work],
        slots: Slots,
    ) -> None:
        self._resolve = resolve
        self._slots = slots
        self._unfinished = False
        self._children = [
            Child("decode", "a process that decodes", functools.partial(serve, open_part=open_part))
            for open_part in parts
        ]

    def lock_pages(self) -> None:
        """Page-lock the memory of the batches; the GPU must already be in use."""
        self._slots.lock_pages()

    def batches(self, request: Request) -> Generator[Batch]:
        """Yield the batches of a request; see `Batches`."""
        self._finish()
        self._send(request)
        self._unfinished = True
        held: deque[int] = deque()
        try:
            work = self._resolve(request)
            for index, ids in enumerate(work.batches):
                if len(held) == _HELD:
                    held.popleft()
                    self._send(Word.SLOT_FREED)
                batch = self._slots.batch(index, ids, work.size)
                # Each child reports its part of every batch, in order, so one message from each
                # completes the batch.
                for child in self._children:
                    bad, keys, requests = child.receive()
                    batch.bad += bad
                    batch.keys |= keys
                    replay(requests)
                held.append(index)
                yield batch
            self._finish()
        finally:
            # Abandoned, or ended by an error. The messages still under way are skipped by the next
            # `_finish`.
            if self._unfinished:
                self._send(Word.STOP)

    def close(self) -> None:
        """Stop the child processes."""
        # Hang up on all before waiting for any, so that they end at the same time.
        for child in self._children:
            child.hang_up()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for child in self._children:
            child.end(deadline)

    def _send(self, message: object) -> None:
        for child in self._children:
            child.send(message)

    def _finish(self) -> None:
        """Wait until no process is working on the last request."""
        if self._unfinished:
            for child in self._children:
                _skip_rest(child)
        self._unfinished = False


def _skip_rest(child: Child) -> None:
    """Discard a process's remaining messages about a request, including errors."""
    with contextlib.suppress(EOFError, OSError):
        # Members of an enum are unpickled to the same object, so `is` works across processes.
        while child.connection.recv() is not Word.ENDED:
            pass
