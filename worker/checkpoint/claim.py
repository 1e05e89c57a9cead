"""Attempts: one numbered object per start of a job; the number is the fencing token.

The first attempt gives the output its identity. A new attempt compares its identity with the
output's before each try at claiming a number, and claims the number with a conditional PUT, so a
refused attempt leaves nothing behind.
"""

import datetime
import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, JsonValue

from worker.errors import ConfigurationError, InfrastructureError, Superseded
from worker.layout import ATTEMPT, ATTEMPTS, attempt_name
from worker.store import ObjectMissing, Store
from worker.store.json_records import StoredRecord, get_json

_MAX_TRIES = 100

Identity = Mapping[str, str]
"""The settings that all attempts of one job have in common, by manifest field."""


class AttemptRecord(StoredRecord):
    """The record by which an attempt claims its number; `manifest` is the resolved one."""

    identity: Annotated[dict[str, str], Field(min_length=1)]
    manifest: dict[str, JsonValue] = Field(default_factory=dict)
    started: str | None = None


def attempt_numbers(store: Store) -> list[int]:
    """Return the numbers of all attempts, in order."""
    matches = (ATTEMPT.fullmatch(info.key) for info in store.list(ATTEMPTS))
    return sorted(int(match[1]) for match in matches if match)


def read_attempt(store: Store, number: int) -> AttemptRecord | None:
    """Return the record of an attempt, or None if it is missing or damaged."""
    try:
        return get_json(store, attempt_name(number), AttemptRecord)
    except ObjectMissing:
        return None


def first_whole(store: Store, numbers: Sequence[int]) -> AttemptRecord | None:
    """Return the first intact attempt record, in the order of `numbers`, or None."""
    return next(filter(None, (read_attempt(store, number) for number in numbers)), None)


def next_number(numbers: Sequence[int], is_whole: Callable[[int], object]) -> int:
    """Return the first free number above those of all intact objects.

    Damaged objects may have any number, even the highest possible one, beyond which none is left.
    """
    number = next(filter(is_whole, sorted(numbers, reverse=True)), 0) + 1
    taken = set(numbers)
    while number in taken:
        number += 1
    return number


def claim_attempt(
    store: Store,
    identity: Identity,
    manifest: Mapping[str, Any],
    require_own: Callable[[], None],
) -> int:
    """Claim a number for a new attempt, above those of all intact ones, and return it.

    Args:
        store: The output of the job.
        identity: The identity of the job.
        manifest: Its resolved manifest, as JSON data.
        require_own: Raises `ConfigurationError` if the output has come to belong to another job;
            this attempt then leaves nothing behind.

    Raises:
        InfrastructureError: If other attempts keep claiming the number first.
    """
    record = {"identity": dict(identity), "manifest": dict(manifest), **_origin()}
    data = json.dumps(record).encode()
    for _ in range(_MAX_TRIES):
        # List first, compare second: if another job claims the output after the comparison, it
        # takes the number chosen here, the PUT fails, and the next try compares again.
        numbers = attempt_numbers(store)
        require_own()
        number = next_number(numbers, lambda number: read_attempt(store, number))
        if store.put_if_absent(attempt_name(number), data):
            break
    else:
        where = f"{store.uri}{ATTEMPTS}"
        raise InfrastructureError(f"{where}: other attempts keep claiming the next number")
    try:
        # Without conditional PUT, another job may have claimed the output in the meantime.
        require_own()
    except ConfigurationError:
        # Delete only our own record: without conditional PUT, the other job may have replaced it.
        if store.get(attempt_name(number)) == data:
            store.delete(attempt_name(number))
        raise
    return number


def _origin() -> dict[str, Any]:
    """Return what identifies this start."""
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def ensure_newest(store: Store, attempt: int) -> None:
    """Raise `Superseded` if a newer attempt exists; called before anything is committed."""
    for newer in reversed(attempt_numbers(store)):
        if newer <= attempt:
            return
        if read_attempt(store, newer):  # it is not just an object named like an attempt
            raise Superseded(f"attempt {newer} of this job has started; ending attempt {attempt}")
