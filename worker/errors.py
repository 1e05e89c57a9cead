"""An exception type per exit code; `launch.guard` turns them into codes.

The codes are an API for schedulers (docs/exit-codes.md).
"""

from collections.abc import Iterable
from enum import IntEnum
from signal import SIGABRT, SIGKILL, SIGTERM


class ExitCode(IntEnum):
    """The exit codes, on which a scheduler may act."""

    DONE = 0
    USAGE = 2
    DATA = 65
    INFRASTRUCTURE = 69
    BUG = 70
    STOPPED = 75
    SUPERSEDED = 76
    CONFIGURATION = 78


class WorkerError(Exception):
    """An expected end of the program; its text is one line for the user."""

    code = ExitCode.BUG


class DataError(WorkerError):
    """Training data is broken beyond the error budget."""

    code = ExitCode.DATA


class InfrastructureError(WorkerError):
    """Storage, rendezvous or a peer rank gave up after retries; running again may help."""

    code = ExitCode.INFRASTRUCTURE


class StopRequested(WorkerError):
    """Stopped by a signal; all that was done is committed."""

    code = ExitCode.STOPPED


class Superseded(WorkerError):
    """A newer attempt of the same job exists; this one must write nothing more."""

    code = ExitCode.SUPERSEDED


class ConfigurationError(WorkerError):
    """Manifest, credentials or environment are wrong; running again will not help."""

    code = ExitCode.CONFIGURATION


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type if it has none: torch appends whole stacks."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def error_of(code: int) -> WorkerError:
    """The error of this exit code without a text, reported by another rank."""
    kinds = WorkerError.__subclasses__()
    return next((kind for kind in kinds if kind.code == code), WorkerError)("")


# Most fatal first: a code that forbids a retry must never be hidden by one that asks for it.
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
_HUNG = (
    1  # faulthandler's, where a call that hangs keeps Python from running; nothing else gives it
)


def exit_code_of(status: int) -> int:
    """Map a child's status (`-N` for a signal N, as in `subprocess`) to an exit code of ours.

    SIGKILL (the OOM killer, a dead node) and SIGTERM come from outside, and SIGABRT from NCCL's
    watchdog when a collective has timed out, so they are 69; any other signal is a crash of ours,
    70.
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
    """The exit code of a job whose ranks ended with `codes`."""
    return min(codes, key=lambda code: _SEVERITY.index(ExitCode(code)))
