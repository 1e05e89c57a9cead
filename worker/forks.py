"""Forked child processes of a rank, and signal handling shared by all worker processes."""

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
    signal.SIGUSR1,  # sent by Slurm, as our scripts request
    signal.SIGUSR2,  # sent by submitit
    signal.SIGHUP,  # the terminal or ssh connection was lost
    signal.SIGINT,
)

_PR_SET_PDEATHSIG = 1
_NICENESS = 10  # the thread that feeds the GPU takes precedence when cores are scarce
_CAUSE_SECONDS = 2.0
_CAUSES = {
    signal.SIGKILL: ", which the kernel sends when memory runs out (exit code 137 in a shell)",
    signal.SIGABRT: ", which NCCL's watchdog raises when a collective has timed out",
    signal.SIGSEGV: ", a crash in native code",
    signal.SIGBUS: ", as happens when shared memory or scratch space runs out",
}

_connections: list[Connection] = []
"""This process's ends of the connections to its children."""


class Child:
    """A forked process that serves its parent over a connection and dies with it.

    Create it before this process initializes CUDA or starts a thread. The child runs at a lower
    priority and ignores stop signals, which its parent handles.

    Args:
        name: One word for the task of the process.
        description: Subject of an error message, such as "a process that decodes".
        serve: Called in the child with its end of the connection; must return once the
            parent hangs up.
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
        # Only the child may hold a copy of its end, so that `receive` sees the connection close if
        # the child dies.
        theirs.close()

    def send(self, message: object) -> None:
        """Send a message; if the process is dead, no error is raised until `receive`."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> Any:
        """Receive the next message, and raise it if it is an error.

        Raises `InfrastructureError` if the process was killed, `RuntimeError` if it crashed.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            raise self._cause() from None
        if isinstance(message, Exception):
            raise message
        return message

    def hang_up(self) -> None:
        """Close the connection, which makes an idle process exit."""
        with contextlib.suppress(ValueError):  # it is already closed
            _connections.remove(self.connection)
        self.connection.close()

    def end(self, deadline: float) -> None:
        """Wait for the process to exit; kill it at the deadline (by `time.monotonic`)."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _cause(self) -> Exception:
        # The connection closes a little before the process can be reaped and has an exit status.
        self._process.join(_CAUSE_SECONDS)
        status = self._process.exitcode
        if status is None:
            return InfrastructureError(f"{self._description} closed its connection")
        how = f"was killed by {cause_of(-status)}" if status < 0 else f"exited with {status}"
        outside = exit_code_of(status) == ExitCode.INFRASTRUCTURE
        return (InfrastructureError if outside else RuntimeError)(f"{self._description} {how}")


def die_with(parent: int) -> None:
    """Have the kernel kill this process, which `parent` just forked, when its parent exits."""
    # The signal is sent when the thread that forked exits, not only when the entire parent does
    # (prctl(2)), so that thread must live as long as the child is needed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have exited before the call above, in which case no signal will come.
    if os.getppid() != parent:
        os._exit(ExitCode.INFRASTRUCTURE)


def cause_of(number: int) -> str:
    """Return the name of a fatal signal, followed by its most common cause."""
    name = signal.Signals(number).name
    return f"{name}{_CAUSES.get(signal.Signals(number), '')}"


def _run(parent: int, serve: Callable[[Connection], None], connection: Connection) -> None:
    die_with(parent)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    for other in _connections:  # an open copy would keep a sibling from seeing its parent hang up
        other.close()
    serve(connection)
    # On a normal return, multiprocessing would first wait for all non-daemon threads of the child.
    os._exit(ExitCode.DONE)
