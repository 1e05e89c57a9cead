"""Claims on the units of a sweep, so that its workers share the work.

A claim only spares work: if two workers run one unit after all, the attempts of its job fence them
off from each other, and both would write the same result.
"""

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from worker.errors import WorkerError
from worker.store import Store
from worker.sweep.plan import CLAIMS, Unit

_NAME = re.compile(CLAIMS + r"(\d{5,})-(\d{3,})-(\d{2,})/(\d{6})\.json")
_BEATS = 4  # within the time after which a claim is given up


class Claims:
    """The claims of all workers, and those of this one.

    A worker that lives rewrites its claim now and then. One whose claim stays the same for too
    long, by the clock of whoever looks at it, is taken to be lost.

    Args:
        store: The output of the sweep.
        patience: Seconds after which the claim of a silent worker no longer counts.
    """

    def __init__(self, store: Store, patience: float) -> None:
        self._store = store
        self._patience = patience
        self._id = uuid.uuid4().hex
        self._seen: dict[str, tuple[object, float]] = {}
        self._own: str | None = None
        self._beats = 0
        self._beaten = 0.0

    def free(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units that no living worker has claimed, in the same order."""
        newest = self._newest()
        now = time.monotonic()
        found = []
        for unit in units:
            claim = newest.get(unit)
            if claim is None:
                found.append(unit)
                continue
            key, version = claim
            before, since = self._seen.get(key, (None, now))
            if before != version:
                since = now
            self._seen[key] = version, since
            if now - since > self._patience:
                found.append(unit)
        return found

    @contextmanager
    def hold(self, unit: Unit) -> Iterator[bool]:
        """Claim a unit for the duration of the context; yields whether that succeeded."""
        last = self._newest().get(unit)
        number = int(last[0].rpartition("/")[2][:6]) + 1 if last else 1
        key = f"{CLAIMS}{unit.name}/{number:06d}.json"
        if not self._store.put_if_absent(key, self._body()):
            yield False
            return
        self._own, self._beaten = key, time.monotonic()
        try:
            yield True
        finally:
            self._own = None
            # Left behind, it would only make others wait.
            self._release(key)

    def beat(self) -> None:
        """Rewrite the claim that is held, if it is time."""
        now = time.monotonic()
        if self._own and now - self._beaten > self._patience / _BEATS:
            self._beaten = now
            self._beats += 1
            self._store.put(self._own, self._body())

    def _release(self, key: str) -> None:
        try:
            self._store.delete(key)
        except WorkerError:  # it counts as lost after a while
            return

    def _newest(self) -> dict[Unit, tuple[str, object]]:
        """Return the key and the version of the newest claim on each unit."""
        found: dict[Unit, tuple[str, object]] = {}
        for info in self._store.list(CLAIMS):
            match = _NAME.fullmatch(info.key)
            if match:
                trial, repeat, rung, _ = map(int, match.groups())
                found[Unit(rung, trial, repeat)] = info.key, (info.version, info.modified)
        return found

    def _body(self) -> bytes:
        return f'{{"worker": "{self._id}", "beat": {self._beats}}}\n'.encode()
