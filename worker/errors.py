"""Exception types, one per exit code; `launch.guard` maps them to exit codes.

The codes are an API for schedulers (docs/exit-codes.md).
"""

from collections.abc import Iterable
from enum import IntEnum
from signal import SIGABRT, SIGKILL, SIGTERM


class ExitCode(IntEnum):
    """Exit codes that a scheduler can act on."""

    DONE = 0
    USAGE = 2
    DATA = 65
    INFRASTRUCTURE = 69
    BUG = 70
    STOPPED = 75
    SUPERSEDED = 76
    CONFIGURATION = 78


class WorkerError(Exception):
    """An expected failure or stop; its message is a single line for the user."""

    code = ExitCode.BUG


class DataError(WorkerError):
    """Training data is broken beyond the error budget."""

    code = ExitCode.DATA


class InfrastructureError(WorkerError):
    """Storage, rendezvous or a peer rank failed despite retries; running again may help."""

    code = ExitCode.INFRASTRUCTURE


class StopRequested(WorkerError):
    """The job was stopped by a signal; all completed work is committed."""

    code = ExitCode.STOPPED


class Superseded(WorkerError):
    """A newer attempt of the same job exists; this one must not write anything more."""

    code = ExitCode.SUPERSEDED


class ConfigurationError(WorkerError):
    """Manifest, credentials or environment are wrong; running again will not help."""

    code = ExitCode.CONFIGURATION


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type; torch appends stack traces."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def error_of(code: int) -> WorkerError:
    """Return the error for an exit code, without a message, as another rank reports it."""
    kinds = WorkerError.__subclasses__()
    return next((kind for kind in kinds if kind.code == code), WorkerError)("")


# Most fatal first: a code that forbids a retry must never be hidden by one that asks for a retry.
_SEVERITY = (
    ExitCode.CONFIGURATION,
    ExitCode.DATA,
    ExitCode.SUPERSEDED,
    ExitCode.BUG,
    ExitCode.INFRASTRUCTURE,
    ExitCode.STOPPED,
    ExitCode.DONE,
)


_SHELL = 128
_HUNG = 1  # set by faulthandler when a hung call blocks Python; nothing else exits with it


def exit_code_of(status: int) -> int:
    """Map a child's status (`-N` for signal N, as in `subprocess`) to a worker exit code.

    SIGKILL (from the OOM killer, or on a dying node) and SIGTERM come from outside, and SIGABRT
    comes from NCCL's watchdog when a collective has timed out, so they map to 69. Any other signal
    means that the worker itself crashed, and maps to 70.
    """
    if status > _SHELL:  # a shell in between encodes signals differently
        status = _SHELL - status
    if status < 0:
        outside = -status in (SIGKILL, SIGTERM, SIGABRT)
        return ExitCode.INFRASTRUCTURE if outside else ExitCode.BUG
    if status == _HUNG:
        return ExitCode.INFRASTRUCTURE
    return status if status in _SEVERITY else ExitCode.BUG


def most_fatal(codes: Iterable[int]) -> int:
    """Return the exit code of a job whose ranks exited with `codes`."""
    return min(codes, key=lambda code: _SEVERITY.index(ExitCode(code)))
