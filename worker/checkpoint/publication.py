"""The one publisher of a job's result.

An attempt writes its result under its own name, and a conditional PUT of a publication, which names
the parts and their digests, makes it the job's. Only then are the parts copied to where users look
for them, by whoever comes by, and `done.json` is written last. Whatever an older attempt that was
paused does when it wakes, it can write nothing but what the publication names.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from worker.checkpoint.attempt import attempt_numbers, next_number
from worker.checkpoint.commit import MAX_STEPS, Part, digested
from worker.errors import InfrastructureError, WorkerError
from worker.records import Record, read_record
from worker.store import ObjectMissing, Piece, Store

if TYPE_CHECKING:  # torch takes seconds to import, which `worker status` need not wait for
    from worker.checkpoint.tensors import Stream

log = logging.getLogger(__name__)

DONE_NAME = "done.json"
PUBLICATIONS = "publications/"
_PATTERN = re.compile(r"publications/([0-9]{6,9})\.json")
_READ = 16 << 20
_MAX_TRIES = 100

Count = Annotated[int, Field(ge=0, le=MAX_STEPS)]


class Weights(Record):
    """The step whose weights were published, and their validation accuracy, if it was measured."""

    step: Count
    accuracy: float | None = None


class Done(Record):
    """The result of a job: which attempt, after how many steps, with which weights."""

    attempt: Annotated[int, Field(ge=1)]
    step: Count
    weights: Weights
    identity: dict[str, str] = Field(default_factory=dict)


class _PublishedPart(Record):
    name: Literal[
        "final/model.json",
        "final/model.safetensors",
        "final/model.onnx",
        "final/model.pt2",
        "manifest.json",
    ]
    bytes: Annotated[int, Field(ge=0, le=1 << 45)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Publication(Record):
    """The result of an attempt: what `done.json` will say, and the parts that it has written."""

    attempt: Annotated[int, Field(ge=1)]
    done: dict[str, JsonValue]
    parts: Annotated[tuple[_PublishedPart, ...], Field(min_length=1, max_length=16)]

    @model_validator(mode="after")
    def _agrees(self) -> "Publication":
        if Done.model_validate(self.done).attempt != self.attempt:
            raise ValueError("done is of another attempt")
        return self


def read_done(store: Store) -> Done | None:
    """Return the result of a job, if it is done."""
    try:
        return read_record(store, DONE_NAME, Done)
    except ObjectMissing:
        return None


def stage_part(store: Store, attempt: int, name: str, stream: "Stream") -> Part:
    """Write a part of a result under the name of its attempt; it counts for nothing yet.

    Args:
        store: The output of the job.
        attempt: The attempt that writes it.
        name: Where the part is to be once it is published, such as `final/model.json`.
        stream: Its contents.
    """
    digest = hashlib.sha256()
    store.put_stream(_staged(attempt, name), stream.size, digested(stream.pieces(), digest))
    return Part(name, stream.size, digest.hexdigest())


def publish(
    store: Store,
    attempt: int,
    parts: list[Part],
    result: Mapping[str, Any],
    check: Callable[[], None],
    beat: Callable[[], None] = lambda: None,
) -> bool:
    """Make what an attempt has staged the result of the job; false if another was first.

    Args:
        store: The output of the job.
        attempt: The attempt that has staged the parts.
        parts: All of them.
        result: The result, as JSON data.
        check: Called right before each try; may raise.
        beat: Called for every few megabytes that are copied.

    Raises:
        InfrastructureError: What was published cannot be read back.
    """
    fields = [{"name": p.name, "bytes": p.bytes, "sha256": p.sha256} for p in parts]
    told = {"attempt": attempt, **result, "parts": fields}
    data = json.dumps({"attempt": attempt, "done": told, "parts": fields}).encode()
    for _ in range(_MAX_TRIES):
        # Not just the first: what is there may be damaged. The first that is whole counts.
        number = next_number(_numbers(store), lambda number: _published(store, number))
        if store.put_if_absent(_name(number), data, check):
            done = settle(store, beat)
            if done is None:
                raise InfrastructureError(
                    f"{store.uri}{_name(number)}: its parts are not read back as they were written"
                )
            return done.attempt == attempt
    raise InfrastructureError(f"{store.uri}{PUBLICATIONS}: others keep publishing first")


def settle(store: Store, beat: Callable[[], None] = lambda: None) -> Done | None:
    """Return the result of the job, brought to where users look for it; None if none is published.

    A publication that was cut short is completed, whoever made it.

    Args:
        store: The output of the job.
        beat: Called for every few megabytes that are copied.
    """
    done = read_done(store)
    if done:
        return done
    for number in _numbers(store):
        publication = _published(store, number)
        completed = _complete(store, publication, beat) if publication else None
        if completed:
            return completed
    return None


def _complete(store: Store, publication: Publication, beat: Callable[[], None]) -> Done | None:
    """Copy the parts to their places, then write `done.json`; None if a part is lost."""
    for part in publication.parts:
        source = _staged(publication.attempt, part.name)
        try:
            try:
                store.put_stream(part.name, part.bytes, _verified(store, source, part, beat))
            except ObjectMissing:  # removed, because it had been copied
                for _ in _verified(store, part.name, part, beat):
                    pass
        except (ObjectMissing, ValueError) as error:
            log.warning("the result of attempt %d is not whole: %s", publication.attempt, error)
            return None
    store.put(DONE_NAME, json.dumps(publication.done, indent=1).encode())
    _remove_staged(store, [part.name for part in publication.parts])
    return Done.model_validate(publication.done)


def _verified(
    store: Store, key: str, part: _PublishedPart, beat: Callable[[], None]
) -> Iterator[Piece]:
    """Yield a staged part piece by piece; raises `ValueError` at the end if it was altered."""
    digest = hashlib.sha256()
    for start in range(0, part.bytes, _READ):
        beat()
        piece = store.get(key, start, min(start + _READ, part.bytes))
        digest.update(piece)
        yield piece
    if digest.hexdigest() != part.sha256:
        raise ValueError(f"{store.uri}{key} was altered")


def _remove_staged(store: Store, names: list[str]) -> None:
    """Remove what attempts have staged, uploads that were cut short included.

    What is left over costs space and no more, so nothing of it stops a job.
    """
    with contextlib.suppress(WorkerError):
        numbers = attempt_numbers(store)
        for number in numbers:
            for info in list(store.list(_staged(number, ""))):
                store.delete(info.key)
        for name in names:
            store.abort_uploads(name)
            for number in numbers:
                store.abort_uploads(_staged(number, name))


def _published(store: Store, number: int) -> Publication | None:
    try:
        return read_record(store, _name(number), Publication)
    except ObjectMissing:
        return None


def _numbers(store: Store) -> list[int]:
    matches = (_PATTERN.fullmatch(info.key) for info in store.list(PUBLICATIONS))
    return sorted(int(match[1]) for match in matches if match)


def _name(number: int) -> str:
    return f"{PUBLICATIONS}{number:06d}.json"


def _staged(attempt: int, name: str) -> str:
    return f"records/{attempt:06d}/result/{name}"
