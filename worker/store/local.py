"""A local directory with the semantics of an object store, for tests and laptops."""

import contextlib
import errno
import fcntl
import glob
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from worker.errors import ConfigurationError, InfrastructureError
from worker.store.interface import ObjectInfo, ObjectMissing, Piece
from worker.store.traffic_counts import measured

_TEMPORARY = ".tmp-"
_LOCK = f"{_TEMPORARY}lock"  # like all temporary files, never listed
_MAX_NAME = 200  # bytes of an object's name that its temporary file's name keeps
# Errors of the disk, or of the network behind it, that may have passed by the next try.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}


class LocalStore:
    """`Store` on a local directory, which the first write creates."""

    fences = True

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = f"{self.root.as_uri().removesuffix('/')}/"

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        try:
            with measured("get") as moved, _opened(self._path(key)) as file:
                file.seek(start)
                data = file.read(-1 if stop is None else max(0, stop - start))
                moved.size = len(data)
                return data
        except IsADirectoryError:
            raise ObjectMissing(f"{self.uri}{key}: is a folder, not a file") from None
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissing(f"{self.uri}{key}: no such file") from None
        except OSError as error:
            raise self._translate(key, error) from error

    def put(self, key: str, data: bytes) -> None:
        self.put_stream(key, len(data), (data,))

    def put_stream(self, key: str, size: int, pieces: Iterable[Piece]) -> None:
        path = self._path(key)
        try:
            with measured("put") as moved:
                # Atomic, and the data is on disk before the name is: after a power failure, the
                # name stands for the old object or for the whole new one.
                temporary = self._write_temporary(path, pieces)
                try:
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
                moved.size = size
        except OSError as error:
            raise self._translate(key, error) from error

    def replace(self, key: str, size: int, pieces: Iterable[Piece], version: str) -> bool:
        path = self._path(key)
        try:
            with measured("put") as moved:
                temporary = self._write_temporary(path, pieces)
                try:
                    with _locked(path.parent):
                        if version != (_version(path.stat()) if path.exists() else ""):
                            return False
                        if not temporary.exists():  # removed by another attempt's cleanup
                            return False
                        os.replace(temporary, path)
                        moved.size = size
                finally:
                    temporary.unlink(missing_ok=True)
        except OSError as error:
            raise self._translate(key, error) from error
        return True

    def put_if_absent(
        self, key: str, data: bytes, check: Callable[[], None] = lambda: None
    ) -> bool:
        path = self._path(key)
        try:
            with measured("create") as moved:
                temporary = self._write_temporary(path, (data,))
                try:
                    check()
                    # Unlike a rename, a link fails if the name is taken, so one of many writers
                    # creates the object, with all of its contents.
                    os.link(temporary, path)
                    moved.size = len(data)
                except FileExistsError:
                    return path.read_bytes() == data
                finally:
                    temporary.unlink()
        except OSError as error:
            raise self._translate(key, error) from error
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = self.root / prefix.rpartition("/")[0]
        # Collected before the first yield, so that the caller's work in between is not measured.
        found = []
        with measured("list"):
            for path in folder.rglob("*"):
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and _TEMPORARY not in path.name and path.is_file():
                    with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                        status = path.stat()
                        found.append(
                            ObjectInfo(
                                key=key,
                                size=status.st_size,
                                modified=status.st_mtime,
                                version=_version(status),
                            )
                        )
        # By code point, which is the order of the keys' UTF-8 bytes, as in S3.
        yield from sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        try:
            with measured("delete"):
                self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise self._translate(key, error) from error

    def abort_uploads(self, key: str) -> int:
        path = self._path(key)
        left = list(path.parent.glob(f"{_TEMPORARY}{glob.escape(_short(path.name))}-*"))
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def _path(self, key: str) -> Path:
        if ".." in key.split("/") or key.startswith("/"):
            raise ConfigurationError(f"{key!r}: an object name must not lead outside {self.uri}")
        return self.root / key

    def _write_temporary(self, path: Path, pieces: Iterable[Piece]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{_TEMPORARY}{_short(path.name)}-{uuid.uuid4().hex[:8]}"
        try:
            with temporary.open("xb") as file:  # with the permissions that the umask leaves
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _translate(self, key: str, error: OSError) -> Exception:
        line = f"{self.uri}{key}: {error.strerror}"
        if error.errno in _PASSING:
            return InfrastructureError(line)
        return ConfigurationError(f"{line}; check the path and its permissions")


def _short(name: str) -> str:
    """Return as much of a name as leaves room for a prefix and a suffix, of 255 bytes in all."""
    return os.fsencode(name)[:_MAX_NAME].decode(errors="ignore")


def _version(status: os.stat_result) -> str:
    # Every write makes a new file, and so a new inode; the times tell files apart if the file
    # system has reused the number of a deleted one.
    return f"{status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which every `replace` takes; on a shared folder (NFS), across nodes.

    If the file system does not support locks, none is held.
    """
    with (folder / _LOCK).open("ab") as file:
        with contextlib.suppress(OSError):
            # POSIX locks, which NFS passes on to the server. They exclude other processes, not the
            # threads of this one; closing the file releases them.
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> BinaryIO:
    """Open a regular file, without blocking on a pipe.

    Raises `IsADirectoryError` for anything but a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise IsADirectoryError
    return os.fdopen(handle, "rb")
