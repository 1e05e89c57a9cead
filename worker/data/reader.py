"""Verified bytes of samples, from ranged reads of plain tars.

A shard is read in runs: adjacent samples, about `_RUN_BYTES` in total. The plan takes the samples
of a lane in nearly the order of the shard, so a run is fetched once and serves several batches.
Nothing waits for an entire shard, and memory is bounded by the cache, regardless of the number of
shards.
"""

import functools
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import xxhash

from worker.data.image_formats import MAX_IMAGE_BYTES
from worker.data.index import Index, Shard
from worker.data.read_cache import Cache
from worker.data.sample_keys import key_in
from worker.data.scratch import Scratch
from worker.data.sidecar import SIDECAR_DTYPE, Sidecar, decode_sidecar
from worker.errors import DataError
from worker.store import ObjectMissing, Store
from worker.text import printable

_RUN_BYTES = 1 << 22  # at most; large enough to amortize the latency of a request
_NO_ROWS = np.empty(0, SIDECAR_DTYPE)

ReadRun = tuple[int, int]  # shard number, run number within the shard


class BadSample(DataError):
    """A sample that cannot be used; `reason` is one of a few fixed words, for a metric label."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def require_image_size(size: int) -> None:
    """Raise `BadSample` for a file of more bytes than are read as an image."""
    if size > MAX_IMAGE_BYTES:
        raise BadSample("undecodable", f"is larger than {MAX_IMAGE_BYTES >> 20} MiB")


@dataclass(frozen=True)
class Sample:
    """A labeled image."""

    image: memoryview
    """The encoded bytes."""
    label: int
    """An index into the classes."""


@dataclass(frozen=True, kw_only=True)
class _Fetched:
    """The bytes of a run, their offset in the shard, and the sidecar rows of its samples.

    `again` means that this is the second read. `problem` says why there are no bytes.
    """

    rows: Sidecar
    start: int
    data: bytes
    again: bool
    problem: str = ""

    @property
    def nbytes(self) -> int:
        return len(self.data) + 1024  # for the objects around the bytes, even without bytes


class Reader(Protocol):
    """Random access to images by id; safe to share between threads."""

    scratch: Scratch | None
    """The disk cache; None for no such cache."""

    @property
    def lookahead(self) -> int:
        """The number of samples worth reading ahead."""

    def runs(self, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return a number for each sample's run: samples that are fetched together."""

    def prefetch(self, sample_ids: npt.NDArray[np.int64]) -> None:
        """Start reading these samples in the background, in the order given."""

    def read(self, sample_id: int) -> Sample:
        """Return a sample. Raises `BadSample` if it cannot be used, and any error of the store."""

    def identity(self, sample_id: int) -> str:
        """Return a name for a sample's bytes and label that does not depend on its location."""

    def name(self, sample_id: int) -> str:
        """Return a sample's location as text."""

    def key(self, sample_id: int) -> str:
        """Return the name of a sample within its set."""


class SampleReader:
    """Random access to the samples of a data set by id; safe to share between threads.

    Args:
        store: The root of the data set.
        index: The index of the data set.
        cache: Cache of runs and sidecars, which several readers may share.
        scratch: Cache of runs on a local disk; None for no such cache.
        lanes: Number of places in the data set that are read concurrently.
        sidecars: The store of the sidecars; None if they are beside the shards.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        *,
        cache: Cache,
        scratch: Scratch | None = None,
        lanes: int = 1,
        sidecars: Store | None = None,
    ) -> None:
        self._store = store
        self._sidecars = sidecars or store
        self._index = index
        self._cache = cache
        self.scratch = scratch
        counts = index.counts
        sizes = np.array([shard.bytes for shard in index.shards], dtype=np.int64)
        # The runs of all lanes must fit in memory together, or each is read repeatedly.
        self.run_bytes = min(_RUN_BYTES, cache.limit // (4 * lanes))
        # Samples per run, for each shard, based on the mean size of its samples; at least one. The
        # inner `maximum` avoids a division by zero for an empty shard.
        self._per_run = np.maximum(1, self.run_bytes * counts // np.maximum(1, sizes))
        self._mean_bytes = max(1, int(sizes.sum()) // index.samples)

    @property
    def lookahead(self) -> int:
        """The number of samples worth reading ahead: as many as fit in half of the cache."""
        return self._cache.limit // 2 // self._mean_bytes

    def runs(self, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return a number for each sample's run, consecutive for consecutive runs of a shard."""
        shards, numbers = self._index.locate_all(sample_ids)
        # Runs of different shards may share a number; it only serves to deal runs out to processes.
        found: npt.NDArray[np.int64] = shards + numbers // self._per_run[shards]
        return found

    def prefetch(self, sample_ids: npt.NDArray[np.int64]) -> None:
        """Start reading the runs of these samples in the background, in the order given."""
        shards, numbers = self._index.locate_all(sample_ids)
        runs = numbers // self._per_run[shards]
        # `dict.fromkeys` removes duplicates but, unlike a set, keeps the order.
        for shard, run in dict.fromkeys(zip(shards.tolist(), runs.tolist(), strict=True)):
            self._start((shard, run))

    def read(self, sample_id: int) -> Sample:
        """Return the sample with this id.

        Raises `BadSample` if, even after a second read, its bytes are missing or differ from those
        indexed, and whatever the store raises.
        """
        shard, number, run = self._place(sample_id)
        place = number % int(self._per_run[shard])
        # Adjacent samples are fetched together; another thread may already have started the fetch.
        future = self._start(run)
        while True:
            fetched: _Fetched = future.result()
            if not fetched.problem:
                # `offset` and `length` span the tar members of the sample, headers included, and
                # `first` and `size` the image within them.
                offset, length, digest, first, size, *_, label = fetched.rows[place].item()
                data = memoryview(fetched.data)[offset - fetched.start :][:length]
                if xxhash.xxh3_64_intdigest(data) == digest:
                    return Sample(data[first : first + size], label)
            if fetched.again:
                short = fetched.problem or len(data) < length
                text = "the shard is too short" if short else "its bytes differ from the index"
                text = fetched.problem or text
                raise BadSample("missing" if fetched.problem else "altered", text)
            # The bytes may have been damaged in transit: replace the run in the cache, and only
            # once, even if several threads wait for it.
            second = functools.partial(self._load_run, run, again=True)
            future = self._cache.get(self._key(run), second, instead_of=future)

    def identity(self, sample_id: int) -> str:
        """Return a name for a sample's bytes and label that does not depend on its location."""
        shard, number, _ = self._place(sample_id)
        return f"{self._contents(shard)} sample {number}"

    def name(self, sample_id: int) -> str:
        """Return a sample's location as text: shard, number, and byte and key if known."""
        shard, number, _ = self._place(sample_id)
        text = f"{self._store.uri}{self._index.shards[shard].name}: sample {number}"
        offset, key = self._header(sample_id)
        if offset is None:
            return text
        return f"{text}, byte {offset}{f' ({key})' if key else ''}"

    def key(self, sample_id: int) -> str:
        """Return a sample's key; if it cannot be read, its shard and number."""
        shard, number, _ = self._place(sample_id)
        _, key = self._header(sample_id)
        return printable(key) if key else f"{self._index.shards[shard].name}: sample {number}"

    def _header(self, sample_id: int) -> tuple[int | None, str | None]:
        """Return a sample's offset in its shard, and the key in the tar header there."""
        shard, number, run = self._place(sample_id)
        fetched: _Fetched = self._start(run).result()
        if fetched.problem:
            return None, None
        row = fetched.rows[number % int(self._per_run[shard])]
        start = int(row["offset"]) - fetched.start
        return int(row["offset"]), key_in(fetched.data[start : start + int(row["length"])])

    def _place(self, sample_id: int) -> tuple[int, int, ReadRun]:
        """Return the shard of a sample, its number within the shard, and its run."""
        shard, number = self._index.locate(sample_id)
        return shard, number, (shard, number // int(self._per_run[shard]))

    def _start(self, run: ReadRun) -> Future[Any]:
        return self._cache.get(self._key(run), lambda: self._load_run(run, again=False))

    def _key(self, run: ReadRun) -> tuple[str, str, int, int]:
        """Return a run's cache key, based on its shard's contents, as readers share the cache."""
        shard, number = run
        return self._store.uri, self._index.shards[shard].sidecar, number, int(self._per_run[shard])

    def _load_run(self, run: ReadRun, *, again: bool) -> _Fetched:
        """Read a run; with `again`, from the store itself, after the first read was bad."""
        shard, number = run
        entry = self._index.shards[shard]
        try:
            key = self._store.uri, entry.sidecar
            sidecar = self._cache.get_here(key, lambda: self._load_sidecar(entry))
        except (ObjectMissing, BadSample) as error:
            return _Fetched(
                rows=_NO_ROWS,
                start=0,
                data=b"",
                again=again,
                problem=f"its shard's sidecar cannot be used: {error}",
            )
        first = number * int(self._per_run[shard])
        rows = cast(Sidecar, sidecar)[first : first + int(self._per_run[shard])]
        start, stop = int(rows["offset"][0]), int(rows["offset"][-1] + rows["length"][-1])
        name = self._scratch_name(run)
        # A second read bypasses scratch, whose copy may be the damaged one, and then replaces it.
        data = self.scratch.get(name) if self.scratch and not again else None
        if data is None:
            try:
                data = self._store.get(entry.name, start, stop)
            except ObjectMissing:
                return _Fetched(
                    rows=rows, start=start, data=b"", again=again, problem="its shard is missing"
                )
            if self.scratch:
                self.scratch.put(name, data)
        return _Fetched(rows=rows, start=start, data=data, again=again)

    def _load_sidecar(self, shard: Shard) -> Sidecar:
        try:
            return decode_sidecar(
                self._sidecars.get(shard.sidecar), shard, len(self._index.classes)
            )
        except ValueError as error:
            raise BadSample("missing", str(error)) from None

    def _scratch_name(self, run: ReadRun) -> str:
        return f"{self._contents(run[0])} {run[1]} {self._per_run[run[0]]}"

    def _contents(self, shard: int) -> str:
        """Identify a shard by its bytes and labels, to tell apart data sets at the same address."""
        entry = self._index.shards[shard]
        return f"{entry.sha256} {entry.sidecar_digest}"
