"""The edge where an exception becomes an exit code, for the command and for every rank."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from worker.errors import ExitCode, WorkerError

log = logging.getLogger(__name__)


def report(error: Exception) -> int:
    """Log an error and return its exit code; an expected one is one line, without traceback.

    A rank that fails with all others leaves the text to rank 0 and raises it empty.
    """
    if isinstance(error, WorkerError):
        level = logging.INFO if error.code == ExitCode.STOPPED else logging.ERROR
        if str(error):
            fields = {"event": "end", "code": int(error.code)}
            log.log(level, "%s", error, extra={"fields": fields})
        return error.code
    fields = {"event": "end", "code": int(ExitCode.BUG)}
    log.error("unexpected error, please report it", exc_info=error, extra={"fields": fields})
    return ExitCode.BUG


def exit_code(run: Callable[[], int | None]) -> int:
    """Run, and return the exit code that it returns or that its end means."""
    try:
        return run() or ExitCode.DONE
    except Exception as error:
        return report(error)


def leave(code: int) -> NoReturn:
    """End this process at once.

    Python would wait for threads that still upload, and crash the one that is in native code.
    """
    with contextlib.suppress(OSError, ValueError):  # of a terminal that is gone
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
