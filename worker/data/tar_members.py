"""Members of a tar, read in one front-to-back pass that copes with arbitrary bytes.

Tar readers treat anything that is not a header as the end of the archive, so a truncated or
overwritten shard reads as a shorter one without an error. Here the end must be the end-of-archive
mark (POSIX.1-2017, pax, "ustar Interchange Format": two blocks of zeros).
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

from worker.data.image_formats import UNPACK, compression_of
from worker.errors import WorkerError, first_line

CHUNK_BYTES = 1 << 24

_BLOCK = 512
_MAX_EXTENDED_BYTES = 1 << 18  # of a pax header or a long name, which tarfile reads in one piece
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

Fetch = Callable[[int, int], bytes]
"""Reader of a shard: (start, stop) -> those bytes, or fewer if the shard ends before `stop`."""


class Member(NamedTuple):
    """A member of a tar: its header is at `offset`, its data at `data_offset`.

    `end` is the offset of the next header. `regular` is False for a link, folder or device.
    """

    name: str
    offset: int
    data_offset: int
    size: int
    end: int
    regular: bool
    folder: bool
    sparse: bool


class Malformed(Exception):
    """An archive that cannot be read beyond byte `offset`; the message says why."""

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(text)
        self.offset = offset


class ShardStream(io.RawIOBase):
    """A shard as a file object; chunks are fetched in order and kept until `forget` is called."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._kept = bytearray()
        self._first = self._position = self._wanted_from = 0
        self._hash = hashlib.sha256()

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset
        return offset

    # tarfile only makes absolute seeks and passes a size to every read, so nothing else is
    # supported.
    def read(self, size: int = -1) -> bytes:
        data = self.span(self._position, self._position + size)
        self._position += len(data)
        return data

    def span(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop), or fewer at the shard's end.

        The bytes must not have been forgotten.
        """
        while self.size < stop and self._fill():
            pass
        return bytes(self._kept[start - self._first : stop - self._first])

    def passed(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes [start, stop) in chunks, and forget them; fewer at the shard's end."""
        while start < stop:
            chunk = self.span(start, min(start + CHUNK_BYTES, stop))
            if not chunk:
                return
            start += len(chunk)
            self.forget(start)
            yield chunk

    @property
    def size(self) -> int:
        """Number of bytes fetched so far, including forgotten ones."""
        return self._first + len(self._kept)

    def forget(self, stop: int) -> None:
        """Forget all bytes before `stop`, fetched or not, but keep the last: tarfile checks it."""
        self._wanted_from = max(self._wanted_from, stop - 1)
        self._drop()

    def sha256(self) -> str:
        """Return the digest of the entire shard, after reading the rest of it."""
        # Nothing is wanted anymore, so each chunk is dropped once it is hashed.
        self.forget(self._size + 1)
        while self._fill():
            pass
        return self._hash.hexdigest()

    def _drop(self) -> None:
        done = max(0, min(self._wanted_from - self._first, len(self._kept)))
        # Cheap: CPython deletes from the front of a bytearray by advancing its start.
        del self._kept[:done]
        self._first += done

    def _fill(self) -> bool:
        end = self.size
        if end >= self._size:
            return False
        chunk = self._fetch(end, min(end + CHUNK_BYTES, self._size))
        self._hash.update(chunk)
        self._kept += chunk
        self._drop()
        return bool(chunk)


def read_members(stream: ShardStream) -> Iterator[Member]:
    """Yield the members in order; the caller may then call `forget` up to a member's end.

    Raises `Malformed` for a compressed or damaged archive, or one without a proper end.
    """
    end = 0
    head = stream.span(0, _BLOCK)
    compression = compression_of(head)
    # The magic of a ustar header is at byte 257 (POSIX.1-2017, pax, "ustar Interchange Format").
    if compression and head[257:262] != b"ustar":  # a member's name may begin that way, too
        raise Malformed(0, f"is compressed ({compression}); {UNPACK}")
    try:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header) as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                # A pax record may replace the size that `_Header` has checked. A header that does
                # not move the offset forward would be read forever.
                if info.size < 0 or tar.offset <= info.offset:
                    raise Malformed(end, "no tar header: negative size")
                # Start at the end of the previous member: `info` leaves out any global pax header
                # in between, but the digest of a sample must cover all of its bytes.
                start, end = end, tar.offset
                yield Member(
                    info.name,
                    start,
                    info.offset_data,
                    info.size,
                    end,
                    info.isreg(),
                    info.isdir(),
                    info.issparse(),
                )
            end = tar.offset
    except (WorkerError, Malformed):
        raise
    except Exception as error:  # on arbitrary bytes, tarfile may raise anything
        raise Malformed(end, f"no tar header: {first_line(error)}") from None
    _require_end(stream, end)


class _Header(tarfile.TarInfo):
    """A tar header, trusted only as far as it can be read in bounded time and memory."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        # Sizes in base 256, an extension of GNU tar, have a sign.
        if info.size < 0:
            raise tarfile.InvalidHeaderError("negative size")  # type: ignore[attr-defined]
        if info.type in _EXTENDED and info.size > _MAX_EXTENDED_BYTES:
            raise tarfile.InvalidHeaderError(  # type: ignore[attr-defined]
                f"an extended header of {info.size} bytes"
            )
        return info

    def _proc_gnusparse_10(self, following: Any, pax_headers: Any, tar: Any) -> None:
        """Only mark the member as sparse: tarfile would search for its map beyond its end."""
        following.sparse = [(0, 0)]


def _require_end(stream: ShardStream, end: int) -> None:
    """Raise `Malformed` unless a block of zeros comes next and only zeros follow it."""
    mark = stream.span(end, end + _BLOCK)
    if mark.strip(b"\0"):
        text = "no tar header" if len(mark) == _BLOCK else "a tar header cut short"
        raise Malformed(end, text)
    if len(mark) < _BLOCK:
        raise Malformed(end, "no end-of-archive mark: cut between two samples, or never closed")
    at = end
    while rest := stream.span(at, at + CHUNK_BYTES):
        data = rest.lstrip(b"\0")
        at += len(rest)
        stream.forget(at)
        if data:
            text = "data after the end-of-archive mark, where no reader sees it"
            raise Malformed(at - len(data), text)
