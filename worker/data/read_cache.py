"""A bounded in-memory cache of data read from the store."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

_FETCHES = 8


class Sized(Protocol):
    """Something whose size in bytes is known."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""


class Cache:
    """A cache that loads each key once, in background threads, and keeps up to `limit` bytes.

    It evicts the least recently used values first. Beyond `limit`, it holds at most one load per
    thread. A load that fails is not kept.
    """

    def __init__(self, limit: int, threads: int = _FETCHES) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._items: OrderedDict[Hashable, Future[Sized]] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}  # only of values already loaded
        self._bytes = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")

    def get(
        self,
        key: Hashable,
        load: Callable[[], Sized],
        instead_of: Future[Sized] | None = None,
    ) -> Future[Sized]:
        """Return a future of a key's value, loading it unless it is cached or already being loaded.

        Args:
            key: The key.
            load: Loads the value.
            instead_of: A value to replace, unless another thread has already done so.

        Returns:
            A future of the value, or of the error that `load` raised.
        """
        with self._lock:
            future = self._items.get(key)
            if future is not None and future is not instead_of:
                self._items.move_to_end(key)
                return future
            self._forget(key)
            future = self._items[key] = self._pool.submit(load)
        # Outside the lock: if the future is already done, the callback runs here and takes the
        # lock.
        future.add_done_callback(lambda done: self._settle(key, done))
        return future

    def get_here(self, key: Hashable, load: Callable[[], Sized]) -> Sized:
        """Return the value of a key, loading it in the calling thread.

        For use inside a load that needs another cached value: waiting there for another thread of
        the pool could deadlock the pool.
        """
        with self._lock:
            future = self._items.get(key)
            if future is not None:
                self._items.move_to_end(key)
            else:
                own = self._items[key] = Future()
        # This cannot deadlock as long as such keys are never passed to `get`: the load to wait for
        # is then running in another thread, not queued behind this one.
        if future is not None:
            return future.result()
        try:
            own.set_result(load())
        except BaseException as error:
            own.set_exception(error)
        self._settle(key, own)
        return own.result()

    def close(self) -> None:
        """Stop loading and discard all values."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._items.clear()

    def _forget(self, key: Hashable) -> None:
        self._items.pop(key, None)
        self._bytes -= self._sizes.pop(key, 0)

    def _settle(self, key: Hashable, future: Future[Sized]) -> None:
        """Account for a loaded value, and evict the least recently used ones to make room."""
        with self._lock:
            # If the value was replaced or discarded while loading, its bytes were never counted.
            if self._items.get(key) is not future:
                return
            if future.cancelled() or future.exception():
                del self._items[key]
                return
            self._sizes[key] = future.result().nbytes
            self._bytes += self._sizes[key]
            while self._bytes > self.limit:
                # Oldest first, as `get` moves what it returns to the end. Loads in progress have no
                # size yet, and the new value stays even if it alone exceeds the limit.
                old = next((k for k in self._items if k in self._sizes and k != key), None)
                if old is None:
                    return
                self._forget(old)
