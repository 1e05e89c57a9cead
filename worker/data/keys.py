"""The keys of samples, for people: an index holds none, but the tar headers of a shard do."""

import contextlib
import io
import tarfile

import numpy as np

from worker.data.index import Index, decode_sidecar
from worker.errors import WorkerError
from worker.store import Store

_HEAD_BYTES = 4096


def key_in(head: bytes) -> str | None:
    """Return the key of the sample whose first bytes these are, None if they are none."""
    with contextlib.suppress(tarfile.TarError, ValueError, EOFError):
        with tarfile.open(fileobj=io.BytesIO(head)) as tar:
            member = tar.next()
        return member.name.rpartition(".")[0] if member else None
    return None


def sample_name(store: Store, index: Index, sample_id: int) -> str:
    """Return the shard, the number in it and, if it can be read, the key of a sample."""
    starts = np.cumsum([0, *index.counts])
    number = int(np.searchsorted(starts, sample_id, side="right")) - 1
    shard, place = index.shards[number], int(sample_id - starts[number])
    text = f"{shard.name}: sample {place}"
    with contextlib.suppress(WorkerError, ValueError):
        row = decode_sidecar(store.get(shard.sidecar), shard, None)[place]
        start, length = int(row["offset"]), min(int(row["length"]), _HEAD_BYTES)
        key = key_in(store.get(shard.name, start, start + length))
        return f"{text} ({key})" if key else text
    return text
