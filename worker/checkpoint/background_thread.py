"""Background work during training: one thread that runs calls one after another."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

_NICENESS = 19


class Background:
    """A daemon thread, which does not keep the process alive and yields the CPU to training."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._run, name="background", daemon=True).start()

    def submit(self, call: Callable[[], None]) -> Future[None]:
        """Queue `call` behind earlier ones; the returned future holds any exception it raises."""
        future: Future[None] = Future()
        self._calls.put((call, future))
        return future

    def close(self) -> None:
        """End the thread once it has nothing left to do."""
        self._calls.put(None)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # per-thread niceness exists only on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        for call, future in iter(self._calls.get, None):
            try:
                call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)
