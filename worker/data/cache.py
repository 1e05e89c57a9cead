"""What was read from the store: in memory up to a bound, and on scratch disk if there is one."""

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

_FETCHES = 8
_FREED = 0.2  # share of scratch that is freed when it is full
_PATIENCE_SECONDS = 60.0  # until a full folder is looked at again


class Sized(Protocol):
    """Something whose size in bytes is known."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""


class Cache:
    """Loads by key in background threads, each once; keeps the last used `limit` bytes.

    Besides those it holds at most one load per thread. A load that fails is not kept.
    """

    def __init__(self, limit: int, threads: int = _FETCHES) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._items: OrderedDict[Hashable, Future[Sized]] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}  # of those that are loaded
        self._bytes = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")

    def get(
        self,
        key: Hashable,
        load: Callable[[], Sized],
        instead_of: Future[Sized] | None = None,
    ) -> Future[Sized]:
        """The value of `key`, which `load` makes unless it is there or on its way.

        `instead_of` is a value that will not do: it is replaced, unless another thread has.
        """
        with self._lock:
            future = self._items.get(key)
            if future is not None and future is not instead_of:
                self._items.move_to_end(key)
                return future
            self._forget(key)
            future = self._items[key] = self._pool.submit(load)
        future.add_done_callback(lambda done: self._settle(key, done))
        return future

    def get_here(self, key: Hashable, load: Callable[[], Sized]) -> Sized:
        """The same in this thread, for loads that need another value: pools would deadlock."""
        with self._lock:
            future = self._items.get(key)
            if future is not None:
                self._items.move_to_end(key)
            else:
                own = self._items[key] = Future()
        if future is not None:
            return future.result()
        try:
            own.set_result(load())
        except BaseException as error:
            own.set_exception(error)
        self._settle(key, own)
        return own.result()

    def close(self) -> None:
        """Stop loading and let go of everything."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._items.clear()

    def _forget(self, key: Hashable) -> None:
        self._items.pop(key, None)
        self._bytes -= self._sizes.pop(key, 0)

    def _settle(self, key: Hashable, future: Future[Sized]) -> None:
        """Count what has been loaded, and drop what was used longest ago to make room."""
        with self._lock:
            if self._items.get(key) is not future:
                return
            if future.cancelled() or future.exception():
                del self._items[key]
                return
            self._sizes[key] = future.result().nbytes
            self._bytes += self._sizes[key]
            while self._bytes > self.limit:
                old = next((k for k in self._items if k in self._sizes and k != key), None)
                if old is None:
                    return
                self._forget(old)


class Scratch:
    """A bounded cache of bytes in a folder that the ranks of a node share.

    Only a cache: it may hold anything (what is read is verified by its user), fill up, or vanish.
    Files are whole or absent, and no name is fixed. When `limit` bytes are there, those that
    nobody has used since this process started make room; else new ones stay out, since an epoch
    that is larger than the cache would push out each file before its next use.
    """

    def __init__(self, folder: Path, limit: int, ranks: int) -> None:
        self._folder = folder / "worker-cache"  # what else lies in `folder` is not ours to remove
        self._limit = limit
        # Between looks all ranks together stay below it; but a read has to fit, 4 MiB of 1 GiB.
        self._step = max(int(limit * _FREED / ranks), limit // 256)
        self._began = time.time()
        self._lock = threading.Lock()
        self._room = 0
        self._next_look = 0.0
        self._well = True

    def get(self, name: str) -> bytes | None:
        """What was put under `name`, if it is still there."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`, if there is room and the disk works."""
        if not self._take(len(data)):
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(temporary, self._path(name))
            except OSError:
                Path(temporary).unlink()
                raise
        except OSError as error:
            if self._well:
                log.warning("scratch %s: %s; going on without", self._folder, error.strerror)
            self._well = False

    def _path(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode()).hexdigest()[:32]

    def _take(self, size: int) -> bool:
        """Whether `size` more bytes fit; looks at the folder once per `_step` bytes."""
        with self._lock:
            if size > self._room and time.monotonic() > self._next_look:
                self._room = self._make_room()
                if size > self._room:
                    self._next_look = time.monotonic() + _PATIENCE_SECONDS
            if size > self._room:
                return False
            self._room -= size
            return True

    def _make_room(self) -> int:
        """Remove stale files where too little is free; returns how many bytes may be written."""
        files = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    facts = entry.stat()
                    files.append((facts.st_mtime, facts.st_size, entry.path))
        used = sum(size for _, size, _ in files)
        wanted = self._limit * (1 - _FREED)
        for used_at, size, path in sorted(files):
            if used <= wanted or used_at >= self._began:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink()
            used -= size
        return self._step if used <= wanted else 0
