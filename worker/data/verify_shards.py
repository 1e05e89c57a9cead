"""A comparison of the shards in the store with their index: `worker index --verify`."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import xxhash

from worker.data.index import Index, Shard
from worker.data.sidecar import decode_sidecar
from worker.data.tar_members import ShardStream
from worker.logs import count
from worker.store import ObjectMissing, Store


def verify_shards(
    store: Store, index: Index, threads: int, advance: Callable[[int], None]
) -> list[str]:
    """Read every shard in full and compare it with the index.

    Args:
        store: Where the shards are.
        index: Their index.
        threads: The number of shards to read in parallel.
        advance: Called with the number of bytes just read, by one thread at a time.

    Returns:
        A line for each shard that differs.
    """
    lock = threading.Lock()

    def note(done: int) -> None:
        with lock:
            advance(done)

    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(
            lambda shard: _verify(store, shard, len(index.classes), note), index.shards
        )
        return [line for lines in found for line in lines]


def _verify(store: Store, shard: Shard, classes: int, advance: Callable[[int], None]) -> list[str]:
    where = f"{store.uri}{shard.name}"
    try:
        sidecar = decode_sidecar(store.get(shard.sidecar), shard, classes)
    except ObjectMissing as error:
        return [str(error)]
    except ValueError as error:
        return [f"{store.uri}{shard.sidecar}: {error}"]

    def fetch(start: int, stop: int) -> bytes:
        data = store.get(shard.name, start, stop)
        advance(len(data))
        return data

    # One byte more than was indexed, so that a longer shard is noticed.
    stream = ShardStream(fetch, shard.bytes + 1)
    bad = []
    try:
        # `decode_sidecar` has checked that the samples are in order and do not overlap, so
        # everything before the end of a sample can be forgotten once it has been checked.
        for row in sidecar:
            start, stop = int(row["offset"]), int(row["offset"]) + int(row["length"])
            if xxhash.xxh3_64_intdigest(stream.span(start, stop)) != row["digest"]:
                bad.append(start)
            stream.forget(stop)
        if stream.sha256() == shard.sha256:
            return []
    except ObjectMissing as error:
        return [str(error)]
    size = stream.size
    if size != shard.bytes:
        length = "now longer" if size > shard.bytes else f"now {size} bytes long"
        return [f"{where}: {length}, but had {shard.bytes} bytes when indexed; {_samples(bad)}"]
    return [f"{where}: sha256 differs from that in the index; {_samples(bad)}"]


def _samples(bad: list[int]) -> str:
    if not bad:
        return "no sample is affected"
    return f"{count(len(bad), 'sample')} altered or missing, the first at byte {bad[0]}"
