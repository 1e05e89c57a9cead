"""Processes that a rank forks, and what the processes of a command know of each other."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

from worker.errors import ExitCode, InfrastructureError, exit_code_of

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGUSR1,  # Slurm's, as our scripts ask for it
    signal.SIGUSR2,  # submitit's
    signal.SIGHUP,  # a terminal or an ssh connection that is lost
    signal.SIGINT,
)

_PR_SET_PDEATHSIG = 1
_NICENESS = 10  # the thread that feeds the GPU goes first wherever cores are short
_CAUSE_SECONDS = 2.0
_CAUSES = {
    signal.SIGKILL: ", as the kernel does when memory runs out (exit code 137 to a shell)",
    signal.SIGABRT: ", as NCCL's watchdog does when a collective has timed out",
    signal.SIGSEGV: ", a crash in native code",
    signal.SIGBUS: ", as happens when shared memory or scratch space runs out",
}

_connections: list[Connection] = []
"""This process's ends of the connections to its children."""


class Child:
    """A forked process that serves this one over a connection, and dies with it.

    To be made before this process starts CUDA or any thread. The child has a lower priority, and
    leaves it to this process to stop on request.

    Args:
        name: What it does, in a word.
        description: Subject of an error message, such as "a process that decodes".
        serve: Called in the child with its end of the connection; returns once that is closed.
    """

    def __init__(self, name: str, description: str, serve: Callable[[Connection], None]) -> None:
        self._description = description
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        _connections.append(self.connection)
        self._process: ForkProcess = context.Process(
            target=_run, args=(os.getpid(), serve, theirs), name=name
        )
        self._process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Send what a dead process would not hear; that it is dead is noticed at `receive`."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> Any:
        """Receive the next message, and raise it if it is an error.

        Raises `InfrastructureError` if the process was killed.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            raise self._cause() from None
        if isinstance(message, Exception):
            raise message
        return message

    def hang_up(self) -> None:
        """Close the connection, at which an idle process ends."""
        with contextlib.suppress(ValueError):  # it has been closed before
            _connections.remove(self.connection)
        self.connection.close()

    def end(self, deadline: float) -> None:
        """Let the process end by itself until the deadline, on `time.monotonic`; then kill it."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _cause(self) -> Exception:
        self._process.join(_CAUSE_SECONDS)
        status = self._process.exitcode or 0
        how = f"was killed by {cause_of(-status)}" if status < 0 else f"ended with {status}"
        outside = exit_code_of(status) == ExitCode.INFRASTRUCTURE
        return (InfrastructureError if outside else RuntimeError)(f"{self._description} {how}")


def die_with(parent: int) -> None:
    """Have the kernel kill this process, just forked by `parent`, when that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ExitCode.INFRASTRUCTURE)


def cause_of(number: int) -> str:
    """A signal that has killed a process by name, and what most often sends it."""
    name = signal.Signals(number).name
    return f"{name}{_CAUSES.get(signal.Signals(number), '')}"


def _run(parent: int, serve: Callable[[Connection], None], connection: Connection) -> None:
    die_with(parent)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    for other in _connections:  # else a sibling would not see when its own is closed
        other.close()
    serve(connection)
    os._exit(ExitCode.DONE)
