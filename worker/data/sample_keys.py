"""Sample keys for messages, read from the tar headers of a shard, as the index has none."""

import contextlib
import io
import tarfile

from worker.data.index import Index
from worker.data.shard_scan import split_name
from worker.data.sidecar import Sidecar, decode_sidecar
from worker.errors import WorkerError
from worker.store import Store
from worker.text import printable

_HEAD_BYTES = 4096  # enough for a pax header with a long name before the member's own header


def key_in(head: bytes) -> str | None:
    """Return the sample key in the tar header `head`, or None if it is not a tar header."""
    with contextlib.suppress(tarfile.TarError, ValueError, EOFError):
        with tarfile.open(fileobj=io.BytesIO(head)) as tar:
            member = tar.next()
        parts = split_name(member.name) if member else None
        return parts[0] if parts else None
    return None


class SampleNames:
    """Human-readable names of a data set's samples: shard, number and, if readable, key."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store = store
        self._index = index
        self._sidecars: dict[int, Sidecar] = {}
        self._reads = True

    def __call__(self, sample_id: int) -> str:
        number, place = self._index.locate(sample_id)
        key = self._key(number, place) if self._reads else None
        text = f"{self._index.shards[number].name}: sample {place}"
        return f"{text} ({printable(key)})" if key else text

    def _key(self, number: int, place: int) -> str | None:
        shard = self._index.shards[number]
        try:
            if number not in self._sidecars:
                data = self._store.get(shard.sidecar)
                self._sidecars[number] = decode_sidecar(data, shard, None)
            row = self._sidecars[number][place]
            start, length = int(row["offset"]), min(int(row["length"]), _HEAD_BYTES)
            return key_in(self._store.get(shard.name, start, start + length))
        except (WorkerError, ValueError):
            self._reads = False  # do not query a failing store for every sample
            return None
