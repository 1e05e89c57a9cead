"""Publication of a job's result, by exactly one attempt.

An attempt writes its result under its own name. A conditional PUT of a publication, which names the
parts and their digests, then makes that result the job's. Only then are the parts copied to where
users look for them, by whichever process gets there first, and `done.json` is written last.

A result with more epochs replaces one with fewer; among results with the same number of epochs, the
first counts. To copy a part, a process looks at the target object first, then at the publications,
and then writes on the condition that the object is unchanged. So an attempt that was paused cannot
overwrite the result of a newer one when it wakes up.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from worker.checkpoint.claim import attempt_numbers, next_number
from worker.checkpoint.commit import Part
from worker.checkpoint.publication_record import (
    Done,
    Publication,
    publication_numbers,
    read_done,
    read_publication,
)
from worker.errors import InfrastructureError, WorkerError
from worker.layout import DONE_NAME, PUBLICATIONS, publication_name, staged_name
from worker.store import ObjectMissing, Piece, Store

log = logging.getLogger(__name__)

_READ = 16 << 20
_MAX_TRIES = 100


def publish(
    store: Store,
    attempt: int,
    parts: list[Part],
    *,
    result: Mapping[str, Any],
    check: Callable[[], None],
    beat: Callable[[], None] = lambda: None,
) -> bool:
    """Publish an attempt's staged parts as the result of the job.

    Return False if another attempt was first.

    Args:
        store: The output of the job.
        attempt: The attempt that has staged the parts.
        parts: All of the staged parts.
        result: The result, as JSON data.
        check: Called right before each try; may raise.
        beat: Called for every few megabytes that are copied.

    Raises:
        InfrastructureError: If the published parts cannot be read back, or if other attempts keep
            publishing first.
    """
    fields = [{"name": p.name, "bytes": p.bytes, "sha256": p.sha256} for p in parts]
    told = {"attempt": attempt, **result, "parts": fields}
    data = json.dumps({"attempt": attempt, "done": told, "parts": fields}).encode()
    for _ in range(_MAX_TRIES):
        # Not always number 1: an existing publication may be damaged or have fewer epochs.
        number = next_number(publication_numbers(store), lambda n: read_publication(store, n))
        name = publication_name(number)
        if store.put_if_absent(name, data, check):
            done = settle(store, result["epochs"], beat)
            if done is None:
                raise InfrastructureError(
                    f"{store.uri}{name}: its parts cannot be read back as written"
                )
            return done.attempt == attempt
    raise InfrastructureError(f"{store.uri}{PUBLICATIONS}: other attempts keep publishing first")


def settle(store: Store, epochs: int, beat: Callable[[], None] = lambda: None) -> Done | None:
    """Copy the published result to `final/` and return it, or None if there is none to return.

    A publication that was interrupted is completed, whichever attempt made it.

    Args:
        store: The output of the job.
        epochs: The minimum number of epochs of a result to return; one with fewer epochs is
            copied too, but not returned.
        beat: Called for every few megabytes that are copied.
    """
    return _Copier(store, beat).settle(epochs)


class _Copier:
    """Copier of published results to `final/`."""

    def __init__(self, store: Store, beat: Callable[[], None]) -> None:
        self._store = store
        self._beat = beat
        self._known: dict[int, Publication | None] = {}
        self._lost: set[int] = set()
        """The publications whose parts are lost, or that no longer count."""

    def settle(self, epochs: int) -> Done | None:
        """See the function `settle`."""
        # The loop ends, because each round either returns or excludes one more publication.
        while True:
            number, publication = self._foremost()
            done = read_done(self._store)
            if publication and done != publication.result:
                done = self._complete(number, publication)
                if done is None:
                    self._lost.add(number)
                    continue
            return done if done and done.epochs >= epochs else None

    def _foremost(self) -> tuple[int, Publication | None]:
        """Return the number of the publication that counts, and the publication; or 0 and None."""
        found: list[tuple[int, Publication]] = []
        for number in publication_numbers(self._store):
            if number not in self._known:  # they never change
                self._known[number] = read_publication(self._store, number)
            publication = self._known[number]
            if publication and number not in self._lost:
                found.append((number, publication))
        # More epochs take precedence; among equals, the lowest number, that is, the first.
        return min(found, key=lambda pair: (-pair[1].result.epochs, pair[0]), default=(0, None))

    def _complete(self, number: int, publication: Publication) -> Done | None:
        """Copy the parts to their places, then write `done.json`.

        Return None if a part is lost, or if another publication has taken precedence in the
        meantime.
        """

        def counts() -> bool:
            return self._foremost()[0] == number

        parts = [Part(part.name, part.bytes, part.sha256) for part in publication.parts]
        try:
            self._require_whole(publication.attempt, parts)
            if not all(self._copy(publication.attempt, part, counts) for part in parts):
                return None
        except (ObjectMissing, ValueError) as error:
            log.warning(
                "the result of attempt %d is incomplete or damaged: %s", publication.attempt, error
            )
            return None
        # Every process renders the stored publication to the same bytes, so one that finds
        # `done.json` already written recognizes it by its digest.
        data = json.dumps(publication.done, indent=1).encode()
        done = Part(DONE_NAME, len(data), sha256(data).hexdigest())
        if not self._write(done, lambda: (data,), counts):
            return None
        # Remove them only after `done.json` is written: until then, a restart needs the staged
        # parts to complete the copy.
        _remove_staged(self._store, publication)
        return publication.result

    def _require_whole(self, attempt: int, parts: Sequence[Part]) -> None:
        """Raise `ObjectMissing` or `ValueError` unless every part can be read somewhere.

        Called before any part is copied: a result with a lost part must not damage the previous
        result.
        """
        for part in parts:
            try:
                self._read(staged_name(attempt, part.name), part)
            except ObjectMissing:
                # Another process may have completed the publication and removed the staged parts.
                self._read(part.name, part)

    def _read(self, key: str, part: Part) -> None:
        for _ in self._verified(key, part):
            pass

    def _copy(self, attempt: int, part: Part, counts: Callable[[], bool]) -> bool:
        """Copy a staged part to its place; see `_write`.

        Raises `ObjectMissing` or `ValueError` if what was staged is lost or altered.
        """
        source = staged_name(attempt, part.name)
        try:
            return self._write(part, lambda: self._verified(source, part), counts)
        except ObjectMissing:
            if self._holds(part):  # copied by another process, which then removed the staged one
                return True
            raise

    def _write(
        self,
        part: Part,
        pieces: Callable[[], Iterable[Piece]],
        counts: Callable[[], bool],
    ) -> bool:
        """Write a part unless it is in place; return False if its publication no longer counts."""
        key = part.name
        for _ in range(_MAX_TRIES):
            # Look up the object first, then check that it may be replaced, so that no change in
            # between is missed.
            found = next((info for info in self._store.list(key) if info.key == key), None)
            if not counts():
                return False
            if found and found.size == part.bytes and self._holds(part):
                return True
            version = found.version if found else ""
            if self._store.replace(key, part.bytes, pieces(), version):
                return True
        raise InfrastructureError(f"{self._store.uri}{key}: other processes keep writing it")

    def _holds(self, part: Part) -> bool:
        """Return whether a part is in its place."""
        try:
            self._read(part.name, part)
        except (ObjectMissing, ValueError):
            return False
        return True

    def _verified(self, key: str, part: Part) -> Iterator[Piece]:
        """Yield a part piece by piece; raise `ValueError` at the end if it was altered."""
        digest = sha256()
        for start in range(0, part.bytes, _READ):
            self._beat()
            piece = self._store.get(key, start, min(start + _READ, part.bytes))
            digest.update(piece)
            yield piece
        if digest.hexdigest() != part.sha256:
            raise ValueError(f"{self._store.uri}{key} was altered")


def _remove_staged(store: Store, publication: Publication) -> None:
    """Remove unfinished uploads, and the staged parts of attempts up to the published one.

    Later attempts may be about to publish. Leftovers only cost space, so errors here never stop a
    job.
    """
    with contextlib.suppress(WorkerError):
        numbers = [n for n in attempt_numbers(store) if n <= publication.attempt]
        for number in numbers:
            for info in list(store.list(staged_name(number, ""))):
                store.delete(info.key)
        for name in (part.name for part in publication.parts):
            store.abort_uploads(name)
            for number in numbers:
                store.abort_uploads(staged_name(number, name))
