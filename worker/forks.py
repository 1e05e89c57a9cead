"""Signals and parentage of the forked processes of a command."""

import ctypes
import os
import signal

from worker.errors import ExitCode

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_PR_SET_PDEATHSIG = 1
_CAUSES = {
    signal.SIGKILL: ", as the kernel does when memory runs out (exit code 137 to a shell)",
    signal.SIGABRT: ", as NCCL's watchdog does when a collective has timed out",
    signal.SIGSEGV: ", a crash in native code",
    signal.SIGBUS: ", as happens when shared memory or scratch space runs out",
}


def die_with(parent: int) -> None:
    """Have the kernel kill this process, just forked by `parent`, when that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ExitCode.INFRASTRUCTURE)


def cause_of(number: int) -> str:
    """A signal that has killed a process by name, and what most often sends it."""
    name = signal.Signals(number).name
    return f"{name}{_CAUSES.get(signal.Signals(number), '')}"
