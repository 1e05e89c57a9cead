"""The commit protocol: immutable parts first, then one record that makes them a checkpoint.

There is no movable pointer. The newest (step, attempt) whose parts verify wins; what has no commit
record does not exist.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from worker.checkpoint.attempt import ensure_newest
from worker.errors import Superseded
from worker.store import ObjectMissing, Piece, Store

if TYPE_CHECKING:  # torch takes seconds, which who only looks at commits need not wait for
    from worker.checkpoint.tensors import Stream

log = logging.getLogger(__name__)

Parts = dict[str, bytearray]
"""The parts of a checkpoint in memory, by name; tensors can be views of them."""

COMMITS, CHECKPOINTS = "commits/", "checkpoints/"
_READ = 16 << 20
_SIDE_BY_SIDE = 4


@dataclass(frozen=True)
class Part:
    """One object of a checkpoint: name, size in bytes, sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, order=True)
class CommitName:
    """A committed checkpoint: the number of optimiser steps done, and who wrote it."""

    step: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.step:08d}-{self.attempt:06d}"

    @staticmethod
    def parse(text: str) -> "CommitName | None":
        """The name that `text` is, if it is one."""
        step, _, attempt = text.partition("-")
        if step.isdecimal() and attempt.isdecimal():
            return CommitName(int(step), int(attempt))
        return None


def write_parts(store: Store, name: CommitName, parts: "Mapping[str, Stream]") -> list[Part]:
    """Upload the parts, in this order; they are no checkpoint yet."""
    written = []
    for part, stream in parts.items():
        digest = hashlib.sha256()
        store.put_stream(
            f"{CHECKPOINTS}{name}/{part}", stream.size, digested(stream.pieces(), digest)
        )
        written.append(Part(part, stream.size, digest.hexdigest()))
    return written


def publish_commit(store: Store, name: CommitName, parts: list[Part]) -> None:
    """Make the parts a checkpoint.

    Raises `Superseded` where a newer attempt has started, looked for before every try, or where
    the record exists with other contents.
    """
    record = {
        "step": name.step,
        "attempt": name.attempt,
        "parts": [asdict(part) for part in parts],
    }
    if not store.put_if_absent(
        f"{COMMITS}{name}.json",
        json.dumps(record).encode(),
        lambda: ensure_newest(store, name.attempt),
    ):
        raise Superseded(f"commit {name} exists already: this attempt runs twice")


def list_commits(store: Store) -> list[CommitName]:
    """All commits, newest first."""
    names = (
        CommitName.parse(info.key.removeprefix(COMMITS).removesuffix(".json"))
        for info in store.list(COMMITS)
    )
    return sorted((name for name in names if name), reverse=True)


def read_commit(
    store: Store, name: CommitName, beat: Callable[[], None] = lambda: None
) -> Parts | None:
    """The parts of a checkpoint by name, or None (and a log line) where one is not as committed.

    Args:
        store: The output of the job.
        name: The checkpoint.
        beat: Called for every few megabytes that have come in.
    """
    try:
        record = json.loads(store.get(f"{COMMITS}{name}.json"))
        return {
            part.name: _read_part(store, name, part, beat)
            for part in (Part(**entry) for entry in record["parts"])
        }
    except (
        ObjectMissing,
        ValueError,
        KeyError,
        TypeError,
        MemoryError,
        OverflowError,
    ) as error:
        log.warning("checkpoint %s is not valid (%s), trying an older one", name, error)
        return None


def _read_part(store: Store, name: CommitName, part: Part, beat: Callable[[], None]) -> bytearray:
    """One part, compared with its digest while it comes in; read again once, as a line may err."""
    key = f"{CHECKPOINTS}{name}/{part.name}"

    def read(start: int) -> bytes:
        # One byte more than there should be, to see where there is more.
        return store.get(key, start, min(start + _READ, part.bytes + 1))

    for _ in range(2):
        digest, data, filled = hashlib.sha256(), bytearray(part.bytes), 0
        for piece in _side_by_side(read, range(0, part.bytes + 1, _READ)):
            beat()
            digest.update(piece)
            data[filled : filled + len(piece)] = piece
            filled += len(piece)
        if digest.hexdigest() == part.sha256:
            return data
    raise ValueError(f"{part.name} was altered")


def _side_by_side(read: Callable[[int], bytes], starts: Iterable[int]) -> Iterator[bytes]:
    """Reads in order, a few at a time, of which no more are in memory."""
    reading: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for start in starts:
            if len(reading) == _SIDE_BY_SIDE:
                yield reading.popleft().result()
            reading.append(pool.submit(read, start))
        while reading:
            yield reading.popleft().result()


def delete_commit(store: Store, name: CommitName) -> None:
    """Remove a checkpoint: first the record, so that it is never there with parts missing."""
    store.delete(f"{COMMITS}{name}.json")
    delete_parts(store, name)


def delete_parts(store: Store, name: CommitName) -> None:
    """Remove what lies under the name of a checkpoint."""
    for info in list(store.list(f"{CHECKPOINTS}{name}/")):
        store.delete(info.key)


def digested(pieces: Iterator[Piece], digest: "hashlib._Hash") -> Iterator[Piece]:
    """The pieces, which `digest` has then seen."""
    for piece in pieces:
        digest.update(piece)
        yield piece
