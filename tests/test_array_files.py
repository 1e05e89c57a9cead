"""Arrays are read on any thread."""

import gc
import io
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from worker.array_files import load_array, load_arrays


@pytest.fixture
def busy_collector() -> Iterator[None]:
    """Collections at every few objects, each of which lets another thread run."""

    def pause(phase: str, info: dict[str, int]) -> None:
        time.sleep(0.00001)

    threshold = gc.get_threshold()
    gc.callbacks.append(pause)
    gc.set_threshold(20)
    yield
    gc.set_threshold(*threshold)
    gc.callbacks.remove(pause)


def test_threads_may_read_at_the_same_time(busy_collector: None) -> None:
    """Without the lock, about one read in 300 fails on Python 3.11."""
    table = np.arange(3).astype([("key", "S16"), ("offset", "u8")])
    one, many = io.BytesIO(), io.BytesIO()
    np.save(one, table)
    np.savez(many, table=table)

    def read(_: int) -> bool:
        arrays = load_array(one.getvalue()), load_arrays(many.getvalue())["table"]
        return all((array == table).all() for array in arrays)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(3000)))


def test_no_pickle_is_loaded() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        load_array(buffer.getvalue())


def test_a_fork_waits_for_a_read_to_end() -> None:
    """Otherwise the child would inherit a lock that nobody in it releases."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(1_000_000))
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            load_array(buffer.getvalue())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(20):
            child = multiprocessing.get_context("fork").Process(
                target=load_array, args=[buffer.getvalue()]
            )
            child.start()
            child.join(30)
            child.kill()
            child.join()
            assert child.exitcode == 0
    finally:
        stop.set()
        thread.join()
