"""A range of an object's bytes as a file, for libraries that seek."""

import io
from typing import Any

from worker.store import Store


class ObjectFile(io.RawIOBase):
    """The bytes [start, stop) of an object as a file; each read is a request.

    Args:
        store: The store that holds the object.
        name: Its key.
        start: The first byte.
        stop: The end, exclusive.
    """

    def __init__(self, store: Store, name: str, start: int, stop: int) -> None:
        super().__init__()
        self._store, self._name, self._start, self._size = store, name, start, stop - start
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        first, last = self._start + self._at, self._start + min(self._at + len(buffer), self._size)
        data = self._store.get(self._name, first, last) if first < last else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
