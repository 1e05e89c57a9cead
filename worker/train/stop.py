"""The wish to stop: a signal handler that sets a flag and returns, and how much time is left."""

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping

from worker.environment import grace_seconds
from worker.errors import ExitCode
from worker.forks import STOP_SIGNALS

log = logging.getLogger(__name__)

_EXIT_SECONDS = 1.0  # what the way out takes after the last commit


class StopFlag:
    """Set by SIGTERM, SIGUSR1 or SIGINT, which mean the same and may come more than once.

    `listener`, where set, hears of every signal; a parent passes them on to its ranks with it.
    """

    def __init__(self) -> None:
        self.requested = False
        self.has_begun = False
        """Whether there is something to be committed; until then, a signal ends all at once."""
        self.listener: Callable[[int], None] | None = None
        self._deadline: float | None = None

    def install(self) -> None:
        """Take over the signals; called first thing, before anything slow is imported."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def remaining(self) -> float:
        """Seconds left for a stop, counted from the first signal, or from now without one."""
        if self._deadline is None:
            self._deadline = time.time() + budget(signal.SIGTERM, time.time(), os.environ)
        return self._deadline - time.time()

    def patience(self) -> float:
        """Seconds that may be spent on what is not training: those left for a stop, or endless."""
        return self.remaining() if self.requested else math.inf

    def _handle(self, number: int, _frame: object) -> None:
        if self.requested and number == signal.SIGINT and sys.stderr.isatty():
            os._exit(ExitCode.STOPPED)  # whoever presses Ctrl-C twice does not want to wait
        deadline = time.time() + budget(number, time.time(), os.environ)
        # A warning long before the end may be followed by a signal that means it.
        self._deadline = min(deadline, self._deadline or deadline)
        self.requested = True
        if self.listener:
            self.listener(number)
        elif not self.has_begun:
            # Not by an exception: it may come up in the midst of an import, and crash that.
            log.info("stopped on request before training began; start again to train")
            sys.stderr.flush()
            os._exit(ExitCode.STOPPED)


def budget(number: int, now: float, env: Mapping[str, str]) -> float:
    """Seconds between a signal at `now` (Unix time) and the end that this place has announced.

    Slurm sends SIGUSR1 ahead of a time limit and says in the environment when that is; anything
    else is followed by SIGKILL after the grace period.
    """
    end = env.get("SLURM_JOB_END_TIME", "")
    if number == signal.SIGUSR1 and end.isdecimal():
        return int(end) - now - _EXIT_SECONDS
    return grace_seconds() - _EXIT_SECONDS
