"""Conversion of exceptions to exit codes, for the command and for every rank."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from worker.errors import ExitCode, WorkerError

log = logging.getLogger(__name__)


def report(error: Exception) -> int:
    """Log an error, on one line without a traceback if expected, and return its exit code.

    If all ranks fail together, only rank 0's error has a message; the others are not logged.
    """
    if isinstance(error, WorkerError):
        level = logging.INFO if error.code == ExitCode.STOPPED else logging.ERROR
        if str(error):
            fields = {"event": "end", "code": int(error.code)}
            log.log(level, "%s", error, extra={"fields": fields})
        return error.code
    fields = {"event": "end", "code": int(ExitCode.BUG)}
    log.error("unexpected error; please report it", exc_info=error, extra={"fields": fields})
    return ExitCode.BUG


def exit_code(run: Callable[[], int | None]) -> int:
    """Call a function and return its exit code, or that of the exception that it raises."""
    try:
        return run() or ExitCode.DONE
    except Exception as error:
        return report(error)


def leave(code: int) -> NoReturn:
    """Exit this process immediately.

    A normal exit would wait for threads that are still uploading, and would crash those in native
    code.
    """
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        logging.shutdown()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    os._exit(code)
