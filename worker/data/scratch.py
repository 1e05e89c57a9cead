"""A folder on a disk of the node as a cache, if there is one."""

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
_PATIENCE_SECONDS = 60.0  # until a full folder is looked at again
_SPARE = ".spare"


class Scratch:
    """A bounded cache of bytes in a folder that the ranks of a node share.

    Only a cache: it may hold anything (what is read is verified by its user), fill up, or vanish.
    Files are whole or absent, and no name is fixed. When `limit` bytes are there, those that
    nobody has used since this process started make room; else new ones stay out, since an epoch
    that is larger than the cache would push out each file before its next use.

    Args:
        folder: Where to make a folder of its own.
        limit: Bytes that may lie there.
        sharers: How many processes write there.
        reserve: Bytes that all ordinary files of this job take up; what is put as spare leaves
            that much room for them.
    """

    def __init__(self, folder: Path, limit: int, sharers: int, reserve: int = 0) -> None:
        self._folder = folder / "worker-cache"  # what else lies in `folder` is not ours to remove
        self._limit = limit
        self._reserve = reserve
        # Between looks all together stay below it; but a read has to fit, 4 MiB of 1 GiB.
        self._step = max(int(limit * _FREED / sharers), limit // 256)
        self._began = time.time()
        self._lock = threading.Lock()
        self._room = {False: 0, True: 0}  # by whether it is for what is spare
        self._next_look = {False: 0.0, True: 0.0}
        self._well = True

    def get(self, name: str) -> bytes | None:
        """Return what was put under `name`, if it is still there."""
        try:
            with _opened(self._path(name, spare=False)) as file:
                os.utime(file.fileno())
                return file.read()
        except OSError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`, if there is room and the disk works."""
        self._put(name, data, spare=False)

    def has_spare(self, name: str) -> bool:
        """Return whether something was put under `name` as spare, and is there."""
        try:
            self._path(name, spare=True).stat()
        except OSError:  # of whatever kind: a mount may be lost
            return False
        return True

    def may_take(self, size: int) -> bool:
        """Return whether so many bytes may be put as spare, as far as is known without looking."""
        return size <= self._room[True] or time.monotonic() > self._next_look[True]

    def read_spare(self, name: str, buffer: bytearray) -> int:
        """Read what was put as spare into a buffer.

        Read, not mapped: if a mapped file shrinks or its disk fails, the process is killed.

        Returns:
            The size in bytes, 0 if there is none; if it is larger than the buffer, no more than
            that was read.
        """
        path = self._path(name, spare=True)
        try:
            with _opened(path) as file:
                size = os.fstat(file.fileno()).st_size
                count = file.readinto(memoryview(buffer)[:size]) or 0
                os.utime(file.fileno())
        except OSError:
            return 0
        return size if count == min(size, len(buffer)) else 0

    def put_spare(self, name: str, data: bytes | bytearray) -> None:
        """Keep `data` where there is room that no ordinary file will need."""
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
                log.warning("scratch %s: %s; continuing without", self._folder, error.strerror)
            self._well = False

    def _path(self, name: str, *, spare: bool) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self._folder / f"{digest}{_SPARE if spare else ''}"

    def _take(self, size: int, *, spare: bool) -> bool:
        """Return whether `size` more bytes fit; looks at the folder once per `_step` bytes."""
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
        """Remove stale files if too little is free; return how many bytes may be written.

        Stale is what was last used before this process began. `spare` files (decoded images) may
        only take room that no shard of the job will need.
        """
        files = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    facts = entry.stat()
                    files.append((facts.st_mtime, facts.st_size, entry.path))
        used = sum(size for _, size, _ in files)
        wanted = self._limit * (1 - _FREED)
        if spare:
            ordinary = sum(size for _, size, path in files if not path.endswith(_SPARE))
            # All sharers may write as much before they check again.
            wanted -= self._limit * _FREED + max(0, self._reserve - ordinary)
        stale = sorted(
            (not path.endswith(_SPARE), used_at, size, path)
            for used_at, size, path in files
            if used_at < self._began
        )
        # Spare files are removed first, and nothing else is to make room for one.
        stale = [entry for entry in stale if not (spare and entry[0])]
        # Not even removing all of it would be enough: keep it, it may be of use to others.
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
    """Open a file; raises `OSError` for what is none, such as a pipe, which would wait for ever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = io.FileIO(handle)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(f"{path} is no regular file")
    return file
