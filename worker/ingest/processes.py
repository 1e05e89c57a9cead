"""Work on many parts in forked processes, with progress counted in shared memory."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_longlong
from typing import Any, TypeVar

from worker.errors import InfrastructureError
from worker.forks import STOP_SIGNALS, die_with

R = TypeVar("R")
Work = Callable[[int, Callable[[int, int], None]], R]
"""Works on the part with a given number; calls its second argument with images and bytes done."""

_POLL_SECONDS = 0.2
_current: dict[str, Any] = {}


def work_on(
    parts: Sequence[int], work: Work[R], workers: int, advance: Callable[[int, int], None]
) -> Iterator[R]:
    """Yield the results of `work` on each part, in order of completion.

    The processes are forked, so `work` may refer to anything; only its results are pickled.

    Args:
        parts: The numbers of the parts.
        work: Works on a part.
        workers: The number of processes; with one, the work is done in this process.
        advance: Called with the images and bytes that have been finished since the last call.

    Raises:
        InfrastructureError: If a process is killed.
    """
    if workers == 1 or len(parts) < 2:
        for part in parts:
            yield work(part, advance)
        return
    context = multiprocessing.get_context("fork")
    images, size = context.Value(c_longlong, 0), context.Value(c_longlong, 0)
    _current.update(work=work, images=images, size=size)
    seen = (0, 0)
    # The collector would touch, and so copy, every inherited object in every process.
    gc.freeze()
    pool = ProcessPoolExecutor(
        min(workers, len(parts)), context, initializer=_leave_to, initargs=(os.getpid(),)
    )
    try:
        pending = {pool.submit(_work_on, part) for part in parts}
        while pending:
            done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            now = (images.value, size.value)
            advance(now[0] - seen[0], now[1] - seen[1])
            seen = now
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise InfrastructureError(
            "a process was killed, possibly because memory ran out; lower --workers or --memory"
        ) from None
    finally:
        # End the processes at once: whatever is complete has been staged.
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        _current.clear()
        gc.unfreeze()


def _leave_to(parent: int) -> None:
    """Leave stop signals to the parent, which ends its children; end when the parent does."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)


def _work_on(part: int) -> Any:
    images, size = _current["images"], _current["size"]

    def advance(done: int, read: int) -> None:
        with images.get_lock():
            images.value += done
        with size.get_lock():
            size.value += read

    return _current["work"](part, advance)
