"""Stop requests: a flag set by signals, and the time left to stop."""

import contextlib
import logging
import math
import mmap
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

_EXIT_SECONDS = 1.0  # reserved for the exit after the last commit


class StopFlag:
    """Flag set by any of `STOP_SIGNALS`, which all mean the same and may arrive repeatedly.

    `listener`, if set, is called for every signal; a parent uses it to forward them to its ranks.

    Args:
        resumes: Whether the command may end at any instant, as the same command resumes it.
        commits: Whether the command commits a checkpoint when it is asked to stop.
        parent: The flag of the process that forwards signals to this one.
    """

    def __init__(
        self, *, resumes: bool = False, commits: bool = True, parent: "StopFlag | None" = None
    ) -> None:
        self._farewell = (
            "stopped on request; the same command resumes"
            if resumes
            else "stopped on request before anything started; run the command again"
        )
        self._cost_of_exit = " and loses what was done since the last checkpoint" if commits else ""
        self.requested = False
        self.has_begun = False
        """Whether there may be anything to commit; if not, a signal ends the process immediately.
        """
        self.listener: Callable[[int], None] | None = None
        # In Unix time, not on the monotonic clock, as Slurm states the job's end in Unix time.
        self._deadline: float | None = None
        # Shared with forked processes: 1 after Ctrl-C in a terminal, which no SIGKILL follows
        # except under torchrun. Only the parent knows, as it forwards another signal.
        self._at_leisure: mmap.mmap = parent._at_leisure if parent else mmap.mmap(-1, 1)
        self._has_parent = parent is not None
        self._process = 0

    def install(self) -> None:
        """Install the signal handler; call this first, before any slow import."""
        self._process = os.getpid()
        for number in STOP_SIGNALS:
            # Leave SIGHUP ignored if it already is, as under `nohup`.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def remaining(self) -> float:
        """Return the seconds left to stop, counted from the signal or else from the first call."""
        if self._deadline is None:
            self._deadline = time.time() + budget(signal.SIGTERM, time.time(), os.environ)
        return self._deadline - time.time()

    def patience(self) -> float:
        """Return the seconds available for work other than training; infinite unless stopping."""
        return self.remaining() if self.requested else math.inf

    def _handle(self, number: int, _frame: object) -> None:
        if self.requested and number == signal.SIGINT and sys.stderr.isatty():
            os._exit(ExitCode.STOPPED)  # whoever presses Ctrl-C twice does not want to wait
        # A forked rank leaves the message to its parent.
        if self.has_begun and not self.requested and os.getpid() == self._process:
            # In a thread, as this signal may have interrupted the writing of another log line.
            threading.Thread(target=self._acknowledge, args=(number,), daemon=True).start()
        if os.getpid() == self._process and not self._has_parent:
            typed = number == signal.SIGINT and sys.stderr.isatty()
            self._at_leisure[0] = typed and "TORCHELASTIC_RUN_ID" not in os.environ
        limit = math.inf if self._at_leisure[0] else budget(number, time.time(), os.environ)
        deadline = time.time() + limit
        # An early warning may be followed by a signal with a closer deadline.
        self._deadline = min(deadline, self._deadline or deadline)
        self.requested = True
        if self.listener:
            self.listener(number)
        elif not self.has_begun:
            # Exit without an exception: one raised in the middle of an import could crash it.
            log.info(self._farewell)
            # The terminal may be gone, or the signal may have interrupted a write to it.
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                sys.stderr.flush()
            os._exit(ExitCode.STOPPED)

    def _acknowledge(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and sys.stderr.isatty():
            log.info(
                "stopping after this step; pressing Ctrl-C again exits at once%s",
                self._cost_of_exit,
            )
        else:
            log.info("%s: stopping after this step", name)


def budget(number: int, now: float, env: Mapping[str, str]) -> float:
    """Return the time left to stop after a signal, as set by the scheduler or the grace period.

    If asked to, Slurm sends SIGUSR1 or SIGUSR2 ahead of the time limit, and it puts the end time
    in the environment; any other signal is followed by SIGKILL after the grace period.

    Args:
        number: The signal.
        now: The time of its arrival, in seconds of Unix time.
        env: The environment.

    Returns:
        Seconds.
    """
    end = env.get("SLURM_JOB_END_TIME", "")
    if number in (signal.SIGUSR1, signal.SIGUSR2) and end.isdecimal():
        return int(end) - now - _EXIT_SECONDS
    return Settings.from_env().grace_seconds - _EXIT_SECONDS
