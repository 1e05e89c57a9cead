"""Bytes of samples, verified, from ranged reads of plain tars.

A shard is read in runs of neighbouring samples; the plan takes the samples of a lane in nearly
that order, so a run is fetched once and serves several batches. Memory is bounded by `CACHE_BYTES`
per rank, whatever the number of shards.
"""

import functools
import io
import logging
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash

from worker.data.index import Index, Sidecar, read_sidecar
from worker.errors import DataError
from worker.store import ObjectMissing, Store

log = logging.getLogger(__name__)

CACHE_BYTES = 1 << 29
_RUN_SAMPLES = 32
_FETCHES = 8
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

Run = tuple[int, int]  # shard number, run number within the shard
Fetched = tuple[Sidecar, bytes]  # a run's rows and bytes


@dataclass(frozen=True)
class Sample:
    """One labelled image: `name` says where it lies, `label` is an index into the classes."""

    name: str
    image: bytes
    label: int


class SampleReader:
    """Random access to the samples of a data set by id; safe to share between threads."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store = store
        self._index = index
        counts = index.counts
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._sidecar = functools.lru_cache(maxsize=1024)(self._load_sidecar)
        self._runs: OrderedDict[Run, Future[Fetched]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")

    def prefetch(self, sample_ids: Iterable[int]) -> None:
        """Start reading what these samples need, in the background."""
        for sample_id in sample_ids:
            shard, number = self._locate(sample_id)
            self._fetch((shard, number // _RUN_SAMPLES))

    def read(self, sample_id: int) -> Sample:
        """The sample with this id.

        Raises `DataError` where its bytes are not those that were indexed (after reading them a
        second time) or are no labelled image, and what the store raises.
        """
        shard, number = self._locate(sample_id)
        run = (shard, number // _RUN_SAMPLES)
        for _ in range(2):
            rows, fetched = self._fetch(run).result()
            offset, length, digest = rows[number % _RUN_SAMPLES].item()
            start = offset - int(rows["offset"][0])
            data = fetched[start : start + length]
            if xxhash.xxh3_64_intdigest(data) == digest:
                where = f"{self._store.uri}{self._index.shards[shard].name}, byte {offset}"
                return parse_sample(data, self._index.classes, where)
            log.warning("%s: bytes differ from the index, reading again", self._name(shard))
            with self._lock:
                self._runs.pop(run, None)
        raise DataError(
            f"{self._name(shard)}: sample {number} at byte {offset} is truncated or altered; "
            "restore the shard or pack the data again"
        )

    def close(self) -> None:
        """Stop the background reads."""
        self._pool.shutdown(cancel_futures=True)

    def _name(self, shard: int) -> str:
        return f"{self._store.uri}{self._index.shards[shard].name}"

    def _locate(self, sample_id: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, int(sample_id - self._starts[shard])

    def _load_sidecar(self, shard: int) -> Sidecar:
        return read_sidecar(self._store, self._index.shards[shard])

    def _fetch(self, run: Run) -> Future[Fetched]:
        with self._lock:
            future = self._runs.get(run)
            if future is None:
                future = self._runs[run] = self._pool.submit(self._read_run, run)
                self._evict()
            self._runs.move_to_end(run)
            return future

    def _evict(self) -> None:
        """Drop the runs used longest ago until the rest fits; the newest always stays."""
        done = {
            run: len(future.result()[1])
            for run, future in self._runs.items()
            if future.done() and not future.exception()
        }
        excess = sum(done.values()) - CACHE_BYTES
        for run, size in done.items():
            if excess <= 0:
                return
            del self._runs[run]
            excess -= size

    def _read_run(self, run: Run) -> Fetched:
        shard, number = run
        rows = self._sidecar(shard)[number * _RUN_SAMPLES : (number + 1) * _RUN_SAMPLES]
        start, stop = int(rows["offset"][0]), int(rows["offset"][-1] + rows["length"][-1])
        try:
            return rows, self._store.get(self._index.shards[shard].name, start, stop)
        except ObjectMissing as error:
            raise DataError(f"{error}; the index names it: pack the data again") from None


def parse_sample(data: bytes, classes: tuple[str, ...], where: str) -> Sample:
    """One sample from its tar members; `where` is for messages.

    The label is the `.cls` member, a class number or a class name. Raises `DataError`.
    """
    members: dict[str, bytes] = {}
    key = ""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key = folder + slash + stem
                file = tar.extractfile(member)
                members[suffix.lower()] = file.read() if file else b""
    except tarfile.TarError as error:
        raise DataError(f"{where}: not a tar member: {error}") from None
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if image is None:
        raise DataError(f"{where}: sample {key!r} has no .jpg, .jpeg, .png or .webp")
    if "cls" not in members:
        raise DataError(f"{where}: sample {key!r} has no .cls")
    text = members["cls"].decode(errors="replace").strip()
    label = classes.index(text) if text in classes else int(text) if text.isdecimal() else -1
    if not 0 <= label < len(classes):
        raise DataError(f"{where}: sample {key!r} has class {text!r}, which the index lacks")
    return Sample(f"{where} ({key})", image, label)
