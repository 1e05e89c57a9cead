"""Watchdog that ends a stalled rank and dumps its stacks."""

import faulthandler
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from worker.errors import ExitCode, InfrastructureError

log = logging.getLogger(__name__)

_LOOKS = 20  # polls within the longest stall allowed
_MAX_BEAT_SECONDS = 5.0
_LAST_WORD_SECONDS = 15.0


class Watchdog:
    """Watchdog that dumps all stacks and exits with 69 if there is no `beat` for `seconds`.

    `say_last` is called before the exit, and has a few seconds to return.

    If a stuck call holds the GIL, faulthandler's own thread dumps the stacks and exits with 1.

    Args:
        seconds: The longest stall allowed.
        rank: The number of this rank, for messages.
        say_last: Called in a thread with the error that ends the process.
    """

    def __init__(
        self, seconds: float, rank: int, say_last: Callable[[InfrastructureError], None]
    ) -> None:
        self._seconds = seconds
        self._rank = rank
        self._say_last = say_last
        self._last = time.monotonic()
        self._closed = threading.Event()
        self._arming = threading.Lock()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Record that progress was made."""
        self._last = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        with self._arming:  # or the timer could be armed again after being canceled
            self._closed.set()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(min(_MAX_BEAT_SECONDS, self._seconds / _LOOKS)):
            # Each call restarts a timer in a C thread, which needs no GIL; it fires only if this
            # loop itself is stuck.
            self._arm(2 * self._seconds)
            if time.monotonic() - self._last > self._seconds:
                log.error(
                    "rank %d has done nothing for %g s (WORKER_STALL_SECONDS); its stacks follow",
                    self._rank,
                    self._seconds,
                )
                faulthandler.dump_traceback(file=2)
                self._arm(2 * _LAST_WORD_SECONDS)  # leaves time for the last word
                text = f"rank {self._rank} has done nothing for {self._seconds:g} s"
                end_after(functools.partial(self._say_last, InfrastructureError(text)))

    def _arm(self, seconds: float) -> None:
        """Have faulthandler end the process after some time, unless it is armed again."""
        with self._arming:
            if not self._closed.is_set():
                faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def end_after(say_last: Callable[[], None]) -> NoReturn:
    """End this process with 69 once `say_last` has returned, or a few seconds have passed."""
    # In a thread of its own, as it may hang as well.
    thread = threading.Thread(target=say_last, daemon=True)
    thread.start()
    thread.join(_LAST_WORD_SECONDS)
    # `sys.exit` would end only the calling thread.
    os._exit(ExitCode.INFRASTRUCTURE)
