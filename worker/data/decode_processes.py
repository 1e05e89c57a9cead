"""Batches for one rank, decoded by processes of its own into memory that it shares with them.

Threads in the process that trains would take turns with it at the interpreter lock: on an H100, 16
of them slowed ResNet-50's steps from 3,435 to 536 images a second. Here a batch costs it a message
per process, however many images it has.

The processes are forked before CUDA and any thread is started, leave everything to their parent
that is not reading and decoding, and die with it.
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
"""The batch being waited for, those decoded beside it, and those that the rank still uses."""
_CLOSE_SECONDS = 2.0


class DecodeProcesses:
    """Forks the processes; their number is that of the `parts`, each opened in its own process.

    `resolve` says what a request means, here and there.
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
        """Page-lock what the batches lie in, once the GPU is in use."""
        self._slots.lock_pages()

    def batches(self, request: Request) -> Generator[Batch]:
        """See `Batches`."""
        self._finish()
        self._send(request)
        self._unfinished = True
        held: deque[int] = deque()
        try:
            for index, ids in enumerate(self._resolve(request).batches):
                if len(held) == _HELD:
                    held.popleft()
                    self._send(Word.SLOT_FREED)
                batch = self._slots.batch(index, ids)
                for child in self._children:
                    bad, requests = child.receive()
                    batch.bad += bad
                    replay(requests)
                held.append(index)
                yield batch
            self._finish()
        finally:
            if self._unfinished:
                self._send(Word.STOP)

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.hang_up()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for child in self._children:
            child.end(deadline)

    def _send(self, message: object) -> None:
        for child in self._children:
            child.send(message)

    def _finish(self) -> None:
        """Wait until no process is at work on the last request."""
        if self._unfinished:
            for child in self._children:
                _skip_rest(child)
        self._unfinished = False


def _skip_rest(child: Child) -> None:
    """Skip what a process still has to say of a request, errors included."""
    with contextlib.suppress(EOFError, OSError):
        while child.connection.recv() is not Word.ENDED:
            pass
