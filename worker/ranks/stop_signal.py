"""Stop requests: a signal handler that sets a flag and returns, and how much time is left."""

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping

from worker.environment import Settings
from worker.errors import ExitCode
from worker.forks import STOP_SIGNALS

log = logging.getLogger(__name__)

_EXIT_SECONDS = 1.0  # what the way out takes after the last commit


class StopFlag:
    """Set by any of `STOP_SIGNALS`, which mean the same and may come more than once.

    `listener`, where set, hears of every signal; a parent passes them on to its ranks with it.
    """

    def __init__(self) -> None:
        self.requested = False
        self.has_begun = False
        """Whether there is something to be committed; until then, a signal ends all at once."""
        self.listener: Callable[[int], None] | None = None
        self._deadline: float | None = None
        self._process = 0

    def install(self) -> None:
        """Take over the signals; called first thing, before anything slow is imported."""
        self._process = os.getpid()
        for number in STOP_SIGNALS:
            # As `nohup` has SIGHUP ignored.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
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
        # A rank that was forked leaves it to its parent.
        if self.has_begun and not self.requested and os.getpid() == self._process:
            # By a thread: a log line may have been cut in two by this very signal.
            threading.Thread(target=self._acknowledge, args=(number,), daemon=True).start()
        deadline = time.time() + budget(number, time.time(), os.environ)
        # A warning long before the end may be followed by a signal that means it.
        self._deadline = min(deadline, self._deadline or deadline)
        self.requested = True
        if self.listener:
            self.listener(number)
        elif not self.has_begun:
            # Not by an exception: it may come up in the midst of an import, and crash that.
            log.info("stopped on request before anything started; run it again")
            with contextlib.suppress(OSError, ValueError):  # of a terminal that is gone
                sys.stderr.flush()
            os._exit(ExitCode.STOPPED)

    def _acknowledge(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and sys.stderr.isatty():
            log.info(
                "stopping after this step; Ctrl-C again exits at once and loses what was done "
                "since the last checkpoint"
            )
        else:
            log.info("%s: stopping after this step", name)


def budget(number: int, now: float, env: Mapping[str, str]) -> float:
    """Return the time between a signal and the end that this place has announced.

    Slurm sends SIGUSR1 or SIGUSR2, as it was asked to, ahead of a time limit and says in the
    environment when that is; anything else is followed by SIGKILL after the grace period.

    Args:
        number: The signal.
        now: When it came, in seconds of Unix time.
        env: The environment.

    Returns:
        Seconds.
    """
    end = env.get("SLURM_JOB_END_TIME", "")
    if number in (signal.SIGUSR1, signal.SIGUSR2) and end.isdecimal():
        return int(end) - now - _EXIT_SECONDS
    return Settings.from_env().grace_seconds - _EXIT_SECONDS
