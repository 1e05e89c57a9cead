"""Exit codes, and the exceptions that lead to them by way of `launch.guard`.

The codes are an API for schedulers (docs/exit-codes.md).
"""

from collections.abc import Iterable
from enum import IntEnum
from signal import SIGABRT, SIGKILL, SIGTERM


class ExitCode(IntEnum):
    """Exit codes that a scheduler can act on; each comes with its meaning and advice."""

    meaning: str
    advice: str

    DONE = 0, "done, or was already done", "do nothing"
    USAGE = 2, "invalid command line", "report it"
    DATA = (
        65,
        "more samples are missing, altered or undecodable than `data.error_budget` allows",
        "fail without a retry",
    )
    INFRASTRUCTURE = 69, "storage, the rendezvous or another rank failed", "retry and count it"
    BUG = 70, "unexpected error, a bug", "retry and count it"
    STOPPED = (
        75,
        "stopped on request; everything is committed, or the log says what is not",
        "run again without counting it",
    )
    SUPERSEDED = 76, "a newer attempt of the same job has started", "do nothing"
    CONFIGURATION = (
        78,
        "the manifest, the credentials or the environment are invalid",
        "fail without a retry",
    )

    def __new__(cls, code: int, meaning: str = "", advice: str = "") -> "ExitCode":
        # Without a `__new__`, all three values would be passed to int().
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning, member.advice = meaning, advice
        return member


def describe_exit_codes() -> str:
    """Return the table of docs/exit-codes.md."""
    rows = [f"| {code.value} | {code.meaning} | {code.advice} |" for code in ExitCode]
    return "\n".join(["| code | meaning | a scheduler should |", "|---|---|---|", *rows]) + "\n"


class WorkerError(Exception):
    """An expected failure or stop; its message is a single line for the user."""

    code = ExitCode.BUG


class DataError(WorkerError):
    """Damage to the training data beyond the error budget."""

    code = ExitCode.DATA


class InfrastructureError(WorkerError):
    """A failure of storage, rendezvous or a peer rank despite retries; running again may help."""

    code = ExitCode.INFRASTRUCTURE


class StopRequested(WorkerError):
    """A stop requested by a signal; all completed work is committed."""

    code = ExitCode.STOPPED


class Superseded(WorkerError):
    """A newer attempt of the same job; this one must not write anything more."""

    code = ExitCode.SUPERSEDED


class ConfigurationError(WorkerError):
    """A mistake in the manifest, credentials or environment; running again will not help."""

    code = ExitCode.CONFIGURATION


class Diverged(ConfigurationError):
    """A loss that is no longer finite: the settings do not work for this model and data."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message (torch appends stacks), or else its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def error_of(code: int) -> WorkerError:
    """Return the error for an exit code, without a message: another rank reports the cause."""
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
_HUNG = 1  # set by faulthandler when a hung call blocks Python; nothing else exits with 1


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
