"""The commit protocol: immutable parts first, then one record that makes them a checkpoint.

There is no movable pointer. The newest (step, attempt) whose parts verify wins; what has no commit
record does not exist.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from worker.checkpoint.attempt import ensure_newest
from worker.errors import Superseded
from worker.store import ObjectMissing, Store

log = logging.getLogger(__name__)

_COMMITS = "commits/"


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


def write_commit(store: Store, name: CommitName, parts: Mapping[str, bytes]) -> int:
    """Write the parts, then the commit record; returns the bytes written.

    Raises `Superseded` where a newer attempt has started, even during the upload, or where the
    record exists with other contents.
    """
    for part, data in parts.items():
        store.put(f"checkpoints/{name}/{part}", data)
    record = {
        "step": name.step,
        "attempt": name.attempt,
        "parts": [
            asdict(Part(part, len(data), hashlib.sha256(data).hexdigest()))
            for part, data in parts.items()
        ],
    }
    ensure_newest(store, name.attempt)
    if not store.put_if_absent(f"{_COMMITS}{name}.json", json.dumps(record).encode()):
        raise Superseded(f"commit {name} exists already: this attempt runs twice")
    return sum(map(len, parts.values()))


def list_commits(store: Store) -> list[CommitName]:
    """All commits, newest first."""
    names = []
    for info in store.list(_COMMITS):
        step, _, attempt = info.key.removeprefix(_COMMITS).removesuffix(".json").partition("-")
        if step.isdecimal() and attempt.isdecimal():
            names.append(CommitName(int(step), int(attempt)))
    return sorted(names, reverse=True)


def read_commit(store: Store, name: CommitName) -> dict[str, bytes] | None:
    """The parts of a checkpoint by name, or None (and a log line) where one is not as committed."""
    try:
        record = json.loads(store.get(f"{_COMMITS}{name}.json"))
        parts = {}
        for part in (Part(**entry) for entry in record["parts"]):
            data = store.get(f"checkpoints/{name}/{part.name}")
            if len(data) != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
                raise ValueError(f"{part.name} was altered")
            parts[part.name] = data
    except (ObjectMissing, ValueError, KeyError, TypeError) as error:
        log.warning("checkpoint %s is not valid (%s), trying an older one", name, error)
        return None
    return parts


def delete_commit(store: Store, name: CommitName) -> None:
    """Remove a checkpoint: first the record, so that it is never there with parts missing."""
    store.delete(f"{_COMMITS}{name}.json")
    for info in list(store.list(f"checkpoints/{name}/")):
        store.delete(info.key)
