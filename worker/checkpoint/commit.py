"""The commit protocol: immutable parts first, then one record that makes them a checkpoint.

There is no movable pointer. The newest (step, attempt) whose parts pass verification wins; a
checkpoint without a commit record does not exist.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from worker.checkpoint.claim import ensure_newest
from worker.errors import Superseded
from worker.layout import CHECKPOINT, CHECKPOINTS, COMMITS, commit_name, part_name
from worker.store import ObjectMissing, Piece, Store
from worker.store.json_records import StoredRecord, complaint, get_json

if TYPE_CHECKING:  # torch takes seconds to import, which readers of commits need not wait for
    from worker.checkpoint.tensor_files import TensorStream

log = logging.getLogger(__name__)

Parts = dict[str, bytearray]
"""The parts of a checkpoint in memory, by name; tensors can be views of them."""

MAX_STEPS = 10**12 - 1
STATE_PART = "state.json"
PART_NAMES = (
    STATE_PART,
    *(f"{kind}.safetensors" for kind in ("model", "average", "optimizer")),
)
"""The objects that a checkpoint may hold, in the order in which they are written."""
_READ = 16 << 20  # bytes of a ranged read
_SIDE_BY_SIDE = 4  # ranged reads in flight, as one connection rarely fills a link


@dataclass(frozen=True)
class Part:
    """An object of a checkpoint or result."""

    name: str
    """Name of the part within the checkpoint or the output."""
    bytes: int
    """Size in bytes."""
    sha256: str
    """SHA-256 digest, in hexadecimal."""


@dataclass(frozen=True, order=True)
class CommitName:
    """The name of a committed checkpoint."""

    step: int
    """The number of optimizer steps done."""
    attempt: int
    """The attempt that wrote it."""

    def __str__(self) -> str:
        return f"{self.step:08d}-{self.attempt:06d}"

    @staticmethod
    def parse(text: str) -> "CommitName | None":
        """Parse `text` as a commit name; return None if it is not one."""
        match = CHECKPOINT.fullmatch(text)
        return CommitName(int(match[1]), int(match[2])) if match else None


class _PartRecord(StoredRecord):
    name: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CommitRecord(StoredRecord):
    """The record that makes parts a checkpoint: their names, sizes in bytes and digests."""

    step: int
    attempt: int
    parts: Annotated[tuple[_PartRecord, ...], Field(max_length=len(PART_NAMES))]

    @model_validator(mode="after")
    def _is_complete(self) -> "CommitRecord":
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names) or not set(names) <= set(PART_NAMES):
            raise ValueError("lists unknown or repeated parts")
        # Without `train.ema`, there is no moving average to save.
        missing = set(PART_NAMES) - {"average.safetensors"} - set(names)
        if missing:
            raise ValueError(f"lacks {min(missing)}")
        return self


def write_parts(store: Store, name: CommitName, parts: "Mapping[str, TensorStream]") -> list[Part]:
    """Upload the parts of a checkpoint, which does not exist until its commit is published.

    Args:
        store: The output of the job.
        name: The commit that they will belong to.
        parts: The contents of each part by name, uploaded in this order.

    Returns:
        The name, size and digest of each part, for the commit record.
    """
    written = []
    for part, stream in parts.items():
        digest = hashlib.sha256()
        store.put_stream(part_name(name, part), stream.size, digested(stream.pieces(), digest))
        written.append(Part(part, stream.size, digest.hexdigest()))
    return written


def publish_commit(store: Store, name: CommitName, parts: list[Part]) -> None:
    """Make uploaded parts a checkpoint by writing its record.

    Args:
        store: The output of the job.
        name: The commit.
        parts: The result of `write_parts`.

    Raises:
        Superseded: If a newer attempt exists (checked before every try), or if the record
            already exists with other contents.
    """
    record = {
        "step": name.step,
        "attempt": name.attempt,
        "parts": [asdict(part) for part in parts],
    }
    if not store.put_if_absent(
        commit_name(name),
        json.dumps(record).encode(),
        lambda: ensure_newest(store, name.attempt),
    ):
        raise Superseded(f"commit {name} already exists: this attempt is running twice")


def list_commits(store: Store) -> list[CommitName]:
    """Return all commits, newest first."""
    names = (
        CommitName.parse(info.key.removeprefix(COMMITS).removesuffix(".json"))
        for info in store.list(COMMITS)
    )
    return sorted((name for name in names if name), reverse=True)


def read_commit_record(store: Store, name: CommitName) -> CommitRecord | None:
    """Return the record of a commit, or None if it is missing, damaged or mismatched."""
    try:
        record = get_json(store, commit_name(name), CommitRecord)
    except ObjectMissing:
        return None
    if record and (record.step, record.attempt) != (name.step, name.attempt):
        log.warning(
            "%s%s%s.json belongs to another checkpoint and is ignored", store.uri, COMMITS, name
        )
        return None
    return record


def read_commit(
    store: Store, name: CommitName, beat: Callable[[], None] = lambda: None
) -> Parts | None:
    """Return the parts of a checkpoint by name; if it is damaged, log why and return None.

    Args:
        store: The output of the job.
        name: The checkpoint.
        beat: Called after every few megabytes received.
    """
    record = read_commit_record(store, name)
    if record is None:
        return None
    try:
        # Before anything is read: an altered size may exceed any machine's memory.
        sizes = {info.key: info.size for info in store.list(f"{CHECKPOINTS}{name}/")}
        for part in record.parts:
            found = sizes.get(part_name(name, part.name))
            if found != part.bytes:
                raise ValueError(f"{part.name} has {found or 0} bytes, not {part.bytes}")
        return {
            part.name: _read_part(store, name, Part(part.name, part.bytes, part.sha256), beat)
            for part in record.parts
        }
    except (ObjectMissing, ValueError, MemoryError, OverflowError) as error:
        reason = complaint(error) if isinstance(error, ValueError) else error
        log.warning("checkpoint %s is not valid (%s); trying an older one", name, reason)
        return None


def read_commit_part(store: Store, name: CommitName, wanted: str) -> bytes | None:
    """Return one part of a checkpoint.

    Args:
        store: The output of the job.
        name: The commit.
        wanted: The name of the part.

    Returns:
        The bytes of the part; None if it is missing or too large to read at once, or if it differs
        from the commit record.
    """
    record = read_commit_record(store, name)
    for part in record.parts if record else ():
        key = part_name(name, part.name)
        if part.name == wanted and part.bytes <= _READ:
            try:
                data = store.get(key, 0, _READ)
            except ObjectMissing:
                return None
            return data if hashlib.sha256(data).hexdigest() == part.sha256 else None
    return None


def _read_part(store: Store, name: CommitName, part: Part, beat: Callable[[], None]) -> bytearray:
    """Return a part, verified against its digest as it arrives; retry once on a mismatch."""
    key = part_name(name, part.name)

    def read(start: int) -> bytes:
        # One byte more than there should be, to detect any excess.
        return store.get(key, start, min(start + _READ, part.bytes + 1))

    for _ in range(2):
        digest, data, filled = hashlib.sha256(), bytearray(part.bytes), 0
        # With the + 1, there is a final read that would return an excess byte even if the part is
        # empty or its size is a multiple of `_READ`. An excess byte makes the digest differ.
        for piece in _side_by_side(read, range(0, part.bytes + 1, _READ)):
            beat()
            digest.update(piece)
            data[filled : filled + len(piece)] = piece
            filled += len(piece)
        if digest.hexdigest() == part.sha256:
            return data
    raise ValueError(f"{part.name} was altered")


def _side_by_side(read: Callable[[int], bytes], starts: Iterable[int]) -> Iterator[bytes]:
    """Yield the results of reads in order; run only a few at a time, to limit memory."""
    reading: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for start in starts:
            # Block on the oldest read before starting another: at most `_SIDE_BY_SIDE` pieces are
            # held besides the one that the caller is using.
            if len(reading) == _SIDE_BY_SIDE:
                yield reading.popleft().result()
            reading.append(pool.submit(read, start))
        while reading:
            yield reading.popleft().result()


def delete_commit(store: Store, name: CommitName) -> None:
    """Remove a checkpoint, record first, so that no commit ever has missing parts."""
    store.delete(commit_name(name))
    delete_parts(store, name)


def delete_parts(store: Store, name: CommitName) -> None:
    """Remove all objects below the name of a checkpoint."""
    # Listed in full first, so that no deletion disturbs the listing.
    for info in list(store.list(f"{CHECKPOINTS}{name}/")):
        store.delete(info.key)


def digested(pieces: Iterator[Piece], digest: "hashlib._Hash") -> Iterator[Piece]:
    """Yield the pieces unchanged, updating `digest` with each of them."""
    for piece in pieces:
        digest.update(piece)
        yield piece
