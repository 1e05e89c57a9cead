"""Work behind the training: one thread that runs calls one after the other."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

_NICENESS = 19


class Background:
    """A thread that must not keep the process from ending, and yields the CPU to the training."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._run, name="background", daemon=True).start()

    def submit(self, call: Callable[[], None]) -> Future[None]:
        """Have `call` run after those before it; the future holds what it raises."""
        future: Future[None] = Future()
        self._calls.put((call, future))
        return future

    def close(self) -> None:
        """End the thread once it has nothing left to do."""
        self._calls.put(None)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # a thread's own niceness is a Linux matter
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        for call, future in iter(self._calls.get, None):
            try:
                call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)
