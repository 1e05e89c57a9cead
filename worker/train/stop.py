"""The wish to stop: a signal handler that sets a flag and returns."""

import signal
from collections.abc import Callable

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Set by SIGTERM, SIGUSR1 or SIGINT, which mean the same and may come more than once.

    `listener`, where set, hears of every signal; a parent passes them on to its ranks with it.
    """

    def __init__(self) -> None:
        self.requested = False
        self.listener: Callable[[], None] | None = None

    def install(self) -> None:
        """Take over the signals; called first thing, before anything slow is imported."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: object) -> None:
        self.requested = True
        if self.listener:
            self.listener()
