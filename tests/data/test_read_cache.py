"""The cache loads once and stays within its bound."""

import time
from collections.abc import Callable

from worker.data.read_cache import Cache


class Blob:
    """A value of a stated size."""

    def __init__(self, size: int) -> None:
        self.nbytes = size


def test_the_cache_loads_once_and_stays_within_its_bound() -> None:
    cache = Cache(100)
    loads: list[int] = []

    def load(key: int) -> Blob:
        loads.append(key)
        time.sleep(0.001)
        return Blob(30)

    for key in (0, 0, 1, 0, 2, 3, 3):
        cache.get(key, lambda key=key: load(key)).result()  # type: ignore[misc]
    assert loads == [0, 1, 2, 3]
    cache.get(0, lambda: load(0)).result()  # used later than 1, so still there
    cache.get(1, lambda: load(1)).result()
    assert loads == [0, 1, 2, 3, 1]
    wait_until(lambda: cache._bytes <= 100)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
