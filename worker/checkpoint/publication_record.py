"""Records of a job's result: the publication of an attempt, and the result that users see."""

import hashlib
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue, model_validator

from worker.checkpoint.commit import MAX_STEPS, Part, digested
from worker.layout import (
    DONE_NAME,
    PUBLICATION,
    PUBLICATIONS,
    PUBLISHED,
    publication_name,
    staged_name,
)
from worker.store import ObjectMissing, Store
from worker.store.json_records import StoredRecord, get_json

if TYPE_CHECKING:  # torch takes seconds to import, which `worker status` need not wait for
    from worker.checkpoint.tensor_files import TensorStream


Count = Annotated[int, Field(ge=0, le=MAX_STEPS)]


class Weights(StoredRecord):
    """The step whose weights were published, and their validation accuracy if measured."""

    step: Count
    accuracy: float | None = None
    blend: Annotated[float, Field(ge=0, le=1)] | None = None
    """Their share in the blend with the weights at release; None if there is no blend."""


class Done(StoredRecord):
    """The result of a job: its attempt, the number of steps and the published weights."""

    attempt: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    """The value of `train.epochs`; training may have ended earlier."""
    step: Count
    weights: Weights
    identity: dict[str, str] = Field(default_factory=dict)


class PublishedPart(StoredRecord):
    """An object of a result."""

    name: Annotated[str, Field(pattern=PUBLISHED)]
    bytes: Annotated[int, Field(ge=0, le=1 << 45)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Publication(StoredRecord):
    """The result of an attempt: the contents of `done.json`, and the staged parts."""

    attempt: Annotated[int, Field(ge=1)]
    done: dict[str, JsonValue]
    parts: Annotated[tuple[PublishedPart, ...], Field(min_length=1, max_length=16)]

    @model_validator(mode="after")
    def _agrees(self) -> "Publication":
        if self.result.attempt != self.attempt:
            raise ValueError("`done` belongs to another attempt")
        return self

    @property
    def result(self) -> Done:
        """The result that `done.json` will contain."""
        return Done.model_validate(self.done)


def read_done(store: Store) -> Done | None:
    """Return the published result of a job, or None if it is missing or damaged."""
    try:
        return get_json(store, DONE_NAME, Done)
    except ObjectMissing:
        return None


def stage_part(store: Store, attempt: int, name: str, stream: "TensorStream") -> Part:
    """Write a part of a result below its attempt's name; it has no effect until published.

    Args:
        store: The output of the job.
        attempt: The attempt that writes it.
        name: The name of the part once it is published, such as `final/model.json`.
        stream: The contents of the part.
    """
    digest = hashlib.sha256()
    store.put_stream(staged_name(attempt, name), stream.size, digested(stream.pieces(), digest))
    return Part(name, stream.size, digest.hexdigest())


def read_publication(store: Store, number: int) -> Publication | None:
    """Return a publication, or None if it is missing or damaged."""
    try:
        return get_json(store, publication_name(number), Publication)
    except ObjectMissing:
        return None


def publication_numbers(store: Store) -> list[int]:
    """Return the numbers of all publications, in order."""
    matches = (PUBLICATION.fullmatch(info.key) for info in store.list(PUBLICATIONS))
    return sorted(int(match[1]) for match in matches if match)
