"""One tar shard, read once from front to back: where its samples lie, and what is wrong with it.

Tar readers take whatever is no header for the end of the archive, so a shard that was cut or
overwritten reads as a shorter one without an error. Here the end must be the end-of-archive mark
(POSIX.1-2017, pax, "ustar Interchange Format": two blocks of zeros).
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
CHUNK_BYTES = 1 << 24

_BLOCK = 512
_LABELS: tuple[str, ...] = ("cls", "json")
# Directory and name up to the first dot are the key, the rest is the suffix, as in webdataset.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)

Fetch = Callable[[int, int], bytes]
"""(start, stop) -> those bytes of the shard; fewer where it ends before."""


class Row(NamedTuple):
    """One sample: its tar members and its image within the shard, in bytes, and its label's text.

    `digest` is the xxh3-64 of [offset, offset + length).
    """

    offset: int
    length: int
    digest: int
    image_offset: int
    image_length: int
    label: str


@dataclass(frozen=True)
class Problem:
    """What is wrong with a shard, and at which byte."""

    offset: int
    text: str


@dataclass
class Scan:
    """What one pass over a shard found; `problems` have no row."""

    bytes: int = 0
    sha256: str = ""
    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class _Member(NamedTuple):
    """One file of the tar; `end` is where the next header lies."""

    name: str
    key: str
    suffix: str
    offset: int
    data_offset: int
    size: int
    end: int
    sparse: bool


class _Unsound(Exception):
    """Why a sample cannot be used."""


def scan_shard(fetch: Fetch, size: int, label_field: str = "label") -> Scan:
    """Read a shard of `size` bytes once, in chunks; memory does not grow with it.

    Labels are the text of the `.cls` member, or of `label_field` in the `.json` member. Problems
    are listed, never raised.
    """
    stream = Stream(fetch, size)
    scan = Scan(bytes=size)
    seen: set[int] = set()
    for members in _samples(stream, scan):
        try:
            digest = xxhash.xxh3_64_intdigest(members[0].key.encode(errors="surrogateescape"))
            if digest in seen:
                raise _Unsound("is there already, further up in the shard")
            seen.add(digest)
            scan.rows.append(_row(stream, members, label_field))
        except _Unsound as problem:
            scan.problems.append(Problem(members[0].offset, f"sample {members[0].key!r} {problem}"))
        stream.forget(members[-1].end)
    if not scan.rows and not scan.problems:
        scan.problems.append(Problem(0, "holds no samples"))
    scan.sha256 = stream.sha256()
    return scan


class Stream(io.RawIOBase):
    """A shard as a file that fetches its chunks in order and keeps what is not yet forgotten."""

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

    def read(self, size: int = -1) -> bytes:
        data = self.span(self._position, self._position + size)
        self._position += len(data)
        return data

    def span(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), none of which may be forgotten; fewer at the shard's end."""
        while self.size < stop and self._fill():
            pass
        return bytes(self._kept[start - self._first : stop - self._first])

    @property
    def size(self) -> int:
        """Bytes seen so far, those forgotten included."""
        return self._first + len(self._kept)

    def forget(self, stop: int) -> None:
        """Let go of all before `stop`, read or not, but for the byte that tarfile looks at."""
        self._wanted_from = max(self._wanted_from, stop - 1)
        self._drop()

    def sha256(self) -> str:
        """Of the whole shard, the rest of which is read for it."""
        self.forget(self._size + 1)
        while self._fill():
            pass
        return self._hash.hexdigest()

    def _drop(self) -> None:
        done = max(0, min(self._wanted_from - self._first, len(self._kept)))
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


def _samples(stream: Stream, scan: Scan) -> Iterator[list[_Member]]:
    """The members of each sample: neighbours with the same key. Notes a malformed archive."""
    group: list[_Member] = []
    end = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # it keeps them all
                end = tar.offset
                member = _member(info, end)
                if not member.suffix:
                    stream.forget(group[0].offset if group else end)
                    continue
                if group and group[0].key != member.key:
                    yield group
                    group = []
                group.append(member)
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        if group and group[-1].end > scan.bytes:
            last = group[-1]
            text = f"member {last.name!r} is cut short: it ends at byte {last.end}"
            scan.problems.append(Problem(group[0].offset, text))
            return
        if group:
            yield group
        scan.problems.append(Problem(end, f"no tar header: {error}"))
        return
    if group:
        yield group
    _check_end(stream, scan, end)


def _member(info: tarfile.TarInfo, end: int) -> _Member:
    """Without suffix: what belongs to no sample."""
    match = _MEMBER.fullmatch(info.name) if info.isreg() else None
    key, suffix = (match[1], match[2].lower()) if match else (info.name, "")
    sparse = info.issparse()
    return _Member(info.name, key, suffix, info.offset, info.offset_data, info.size, end, sparse)


def _check_end(stream: Stream, scan: Scan, end: int) -> None:
    """An archive ends with a block of zeros, and after it come only zeros."""
    mark = stream.span(end, end + _BLOCK)
    if mark.strip(b"\0"):
        text = "no tar header" if len(mark) == _BLOCK else "a tar header cut short"
        scan.problems.append(Problem(end, text))
    elif len(mark) < _BLOCK:
        text = "no end-of-archive mark: cut between two samples, or never closed"
        scan.problems.append(Problem(end, text))
    else:
        at = end
        while rest := stream.span(at, at + CHUNK_BYTES):
            data = rest.lstrip(b"\0")
            at += len(rest)
            stream.forget(at)
            if data:
                text = "data after the end-of-archive mark, which no reader sees"
                scan.problems.append(Problem(at - len(data), text))
                return


def _row(stream: Stream, members: list[_Member], label_field: str) -> Row:
    start, stop = members[0].offset, members[-1].end
    files: dict[str, _Member] = {}
    for member in members:
        if member.suffix in files:
            raise _Unsound(f"has two members .{member.suffix}")
        if member.sparse:
            raise _Unsound(f"has {member.name!r}, a sparse file; write it whole")
        files[member.suffix] = member
    image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
    if image is None:
        raise _Unsound("has no .jpg, .jpeg, .png or .webp")
    if stop - start >= 1 << 32:
        raise _Unsound("is larger than 4 GiB")
    data = stream.span(start, stop)
    if len(data) < stop - start:
        raise _Unsound("is cut short")
    texts = {
        kind: data[files[kind].data_offset - start :][: files[kind].size]
        for kind in _LABELS
        if kind in files
    }
    label = _label(texts, label_field)
    first = image.data_offset - start
    if not data.startswith(SIGNATURES, first) or not image.size:
        raise _Unsound(f"has {image.name!r}, which is not a JPEG, PNG or WebP image")
    return Row(start, stop - start, xxhash.xxh3_64_intdigest(data), first, image.size, label)


def _label(texts: dict[str, bytes], label_field: str) -> str:
    if "cls" in texts:
        label = texts["cls"].decode(errors="replace").strip()
        if not label:
            raise _Unsound("has an empty .cls")
        return label
    if "json" not in texts:
        raise _Unsound("has no label: neither .cls nor .json")
    try:
        fields = json.loads(texts["json"])
    except ValueError:
        raise _Unsound("has a .json that is not JSON") from None
    value = fields.get(label_field) if isinstance(fields, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise _Unsound(f"has a .json without a text or whole number {label_field!r}")
    return str(value).strip()
