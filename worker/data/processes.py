"""Batches for one rank, decoded by processes of its own into memory that it shares with them.

Threads in the process that trains would take turns with it at the interpreter lock: on an H100, 16
of them slowed ResNet-50's steps from 3,435 to 536 images a second. Here a batch costs it a message
per process, however many images it has.

The processes are forked before CUDA and any thread is started, leave everything to their parent
that is not reading and decoding, and die with it.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

from worker.data.loader import DECODE_AHEAD, Batch
from worker.data.part import Part, Word, serve
from worker.data.slots import Slots
from worker.data.work import Request, Work
from worker.errors import ExitCode, InfrastructureError, exit_code_of
from worker.forks import STOP_SIGNALS, cause_of, die_with
from worker.store.traffic import replay

_HELD = 2
SLOTS = DECODE_AHEAD + _HELD + 1
"""The batch being waited for, those decoded beside it, and those that the rank still uses."""
_CLOSE_SECONDS = 2.0
_NICENESS = 10  # the thread that feeds the GPU goes first wherever cores are short


class DecodeProcesses:
    """Forks the processes; their number is that of the `parts`, each opened in its own process.

    `resolve` says what a request means, here and there.
    """

    def __init__(
        self,
        parts: Sequence[Callable[[], Part]],
        resolve: Callable[[Request], Work],
        slots: Slots,
    ) -> None:
        self._resolve = resolve
        self._slots = slots
        self._children: list[_Child] = []
        self._unfinished = False
        for open_part in parts:
            others = [child.connection for child in self._children]
            self._children.append(_Child(open_part, others))

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
                    self._send(Word.GO_ON)
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
            child.connection.close()
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
                child.finish()
        self._unfinished = False


class _Child:
    """A decode process and the connection to it."""

    def __init__(self, open_part: Callable[[], Part], others: list[Connection]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self._process: ForkProcess = context.Process(
            target=_run,
            args=(os.getpid(), open_part, theirs, [*others, self.connection]),
            name="decode",
        )
        self._process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Send what a dead process would not hear; that it is dead is noticed at `receive`."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> Any:
        """Receive the process's message about a batch.

        Raises `InfrastructureError` if the process was killed, and any error that ended it.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            raise self._cause() from None
        if isinstance(message, Exception):
            raise message
        return message

    def finish(self) -> None:
        """Skip what it still has to say of the request, errors included."""
        with contextlib.suppress(EOFError, OSError):
            while self.connection.recv() is not Word.ENDED:
                pass

    def end(self, deadline: float) -> None:
        """Let the process end by itself until the deadline, then kill it."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _cause(self) -> Exception:
        self._process.join(_CLOSE_SECONDS)
        status = self._process.exitcode or 0
        how = f"was killed by {cause_of(-status)}" if status < 0 else f"ended with {status}"
        outside = exit_code_of(status) == ExitCode.INFRASTRUCTURE
        return (InfrastructureError if outside else RuntimeError)(f"a process that decodes {how}")


def _run(
    parent: int, open_part: Callable[[], Part], connection: Connection, others: list[Connection]
) -> None:
    die_with(parent)
    for number in STOP_SIGNALS:  # the rank closes this process when it has stopped
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    for other in others:  # else the end of the rank would not be seen on them
        other.close()
    serve(connection, open_part)
    os._exit(ExitCode.DONE)
