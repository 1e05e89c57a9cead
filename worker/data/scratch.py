"""An optional cache in a folder on a local disk of the node."""

import contextlib
import hashlib
import io
import logging
import os
import stat
import tempfile
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)

_FREED = 0.2  # share of scratch that is freed when it is full
_PATIENCE_SECONDS = 60.0  # until a full folder is scanned again
_SPARE = ".spare"


class Scratch:
    """A bounded cache of bytes in a folder that the ranks of a node share.

    It is only a cache: it may hold anything (callers verify what they read), fill up, or vanish.
    Files are renamed into place, so they are complete or absent. When `limit` bytes are in use,
    files that have not been used since this process started are evicted; if there are none, new
    files are not admitted, since an epoch that is larger than the cache would evict each file
    before its next use.

    Args:
        folder: Where to create the cache's own folder.
        limit: Maximum size of the cache, in bytes.
        sharers: The number of processes that write to the cache.
        reserve: Total size of all ordinary files (parts of shards) of this job, in bytes; spare
            files (decoded images) leave that much space for them.
    """

    def __init__(self, folder: Path, limit: int, sharers: int, reserve: int = 0) -> None:
        self._folder = folder / "worker-cache"  # other files in `folder` are not ours to remove
        self._limit = limit
        self._reserve = reserve
        # Between scans, the sharers together stay below `limit`, but `_step` must have room for at
        # least one read: up to 4 MiB, which is 1/256 of the smallest allowed limit, 1 GiB.
        self._step = max(int(limit * _FREED / sharers), limit // 256)
        self._began = time.time()
        self._lock = threading.Lock()
        self._room = {False: 0, True: 0}  # bytes left until the next scan, keyed by `spare`
        self._next_look = {False: 0.0, True: 0.0}
        self._well = True

    def get(self, name: str) -> bytes | None:
        """Return the bytes stored under `name`, or None if there are none."""
        try:
            with _opened(self._path(name, spare=False)) as file:
                # Mark the file as used: eviction goes by the modification time, as many mounts do
                # not record the access time.
                os.utime(file.fileno())
                return file.read()
        except OSError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Store `data` under `name`, if there is space and the disk works."""
        self._put(name, data, spare=False)

    def has_spare(self, name: str) -> bool:
        """Return whether a spare file is stored under `name`."""
        try:
            self._path(name, spare=True).stat()
        except OSError:  # not only if it is missing: a mount may be lost
            return False
        return True

    def may_take(self, size: int) -> bool:
        """Return whether a spare file of `size` bytes might fit, without scanning the folder."""
        # Without the lock: at worst, a stale answer means that `put_spare` rejects an image, or
        # that an image is not cached this time.
        return size <= self._room[True] or time.monotonic() > self._next_look[True]

    def read_spare(self, name: str, buffer: bytearray) -> int:
        """Read the spare file stored under `name` into a buffer.

        It is read, not mapped: if a mapped file shrinks or its disk fails, the process is killed.

        Returns:
            The size of the file in bytes, 0 if there is none; if it exceeds the buffer, only the
            part that fits was read.
        """
        path = self._path(name, spare=True)
        try:
            with _opened(path) as file:
                size = os.fstat(file.fileno()).st_size
                count = file.readinto(memoryview(buffer)[:size]) or 0
                os.utime(file.fileno())
        except OSError:
            return 0
        # A short read means that the file shrank after `fstat`.
        return size if count == min(size, len(buffer)) else 0

    def put_spare(self, name: str, data: bytes | bytearray) -> None:
        """Store `data` as a spare file, if there is space that no ordinary file will need."""
        self._put(name, data, spare=True)

    def _put(self, name: str, data: bytes | bytearray, *, spare: bool) -> None:
        if not self._take(len(data), spare=spare):
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(suffix=_SPARE if spare else "", dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(temporary, self._path(name, spare=spare))
            except OSError:
                Path(temporary).unlink()
                raise
        except OSError as error:
            if self._well:
                log.warning("scratch %s: %s; continuing without it", self._folder, error.strerror)
            self._well = False

    def _path(self, name: str, *, spare: bool) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self._folder / f"{digest}{_SPARE if spare else ''}"

    def _take(self, size: int, *, spare: bool) -> bool:
        """Claim `size` bytes if they fit, and return whether they do.

        The folder is scanned at most once per `_step` bytes.
        """
        with self._lock:
            if size > self._room[spare] and time.monotonic() > self._next_look[spare]:
                self._room[spare] = self._make_room(spare=spare)
                if size > self._room[spare]:
                    self._next_look[spare] = time.monotonic() + _PATIENCE_SECONDS
            if size > self._room[spare]:
                return False
            self._room[spare] -= size
            return True

    def _make_room(self, *, spare: bool) -> int:
        """Remove stale files if space is short; return how many bytes may be written.

        Files last used before this process started are stale. `spare` files (decoded images) may
        only use space that no shard of the job will need.
        """
        files = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            # Includes temporary files that killed processes left behind; they become stale like any
            # other.
            for entry in entries:
                with contextlib.suppress(OSError):
                    facts = entry.stat()
                    files.append((facts.st_mtime, facts.st_size, entry.path))
        used = sum(size for _, size, _ in files)
        wanted = self._limit * (1 - _FREED)
        if spare:
            ordinary = sum(size for _, size, path in files if not path.endswith(_SPARE))
            # Each sharer may write `_step` bytes before it scans again.
            wanted -= self._limit * _FREED + max(0, self._reserve - ordinary)
        # Sorted by kind, then by last use: spare files (False) come first, the least recently used
        # first.
        stale = sorted(
            (not path.endswith(_SPARE), used_at, size, path)
            for used_at, size, path in files
            if used_at < self._began
        )
        # Spare files are removed first; no other file is removed to make space for one.
        stale = [entry for entry in stale if not (spare and entry[0])]
        # If even removing all of them would not be enough, keep them: another job may use them.
        if used - sum(size for _, _, size, _ in stale) > wanted:
            return 0
        for _, _, size, path in stale:
            if used <= wanted:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink()
            used -= size
        return self._step


def _opened(path: Path) -> io.FileIO:
    """Open a regular file; raise `OSError` for any other kind, such as a pipe that could block."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = io.FileIO(handle)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(f"{path} is not a regular file")
    return file
