"""Bytes of samples, verified, from ranged reads of plain tars.

A shard is read in runs of neighboring samples of about `_RUN_BYTES`; the plan takes the samples of
a lane in nearly that order, so a run is fetched once and serves several batches. Nothing waits for
a whole shard, and memory is bounded by the cache, whatever the number of shards.
"""

import functools
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xxhash

from worker.data.index import Index, Shard
from worker.data.read_cache import Cache
from worker.data.sample_keys import key_in
from worker.data.scratch import Scratch
from worker.data.sidecar import SIDECAR_DTYPE, Sidecar, decode_sidecar
from worker.errors import DataError
from worker.store import ObjectMissing, Store

_RUN_BYTES = 1 << 22  # at most: a request costs as much time as some of these
_NO_ROWS = np.empty(0, SIDECAR_DTYPE)

ReadRun = tuple[int, int]  # shard number, run number within the shard


class BadSample(DataError):
    """A sample that cannot be used; `reason` is one of few words, for a metric's label."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


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

    `again`: it was read a second time. `problem` says why there are no bytes.
    """

    rows: Sidecar
    start: int
    data: bytes
    again: bool
    problem: str = ""

    @property
    def nbytes(self) -> int:
        return len(self.data) + 1024


class SampleReader:
    """Random access to the samples of a data set by id; safe to share between threads.

    `lanes` is at how many places of the data set it will be reading at a time.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        *,
        cache: Cache,
        scratch: Scratch | None = None,
        lanes: int = 1,
    ) -> None:
        self._store = store
        self._index = index
        self._cache = cache
        self.scratch = scratch
        counts = index.counts
        sizes = np.array([shard.bytes for shard in index.shards], dtype=np.int64)
        # Runs of all lanes must fit into memory together, or each is read again and again.
        self.run_bytes = min(_RUN_BYTES, cache.limit // (4 * lanes))
        self._per_run = np.maximum(1, self.run_bytes * counts // np.maximum(1, sizes))
        self._mean_bytes = max(1, int(sizes.sum()) // index.samples)

    @property
    def lookahead(self) -> int:
        """For how many samples ahead reading makes sense: half of the memory that there is."""
        return self._cache.limit // 2 // self._mean_bytes

    def runs(self, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A number for the run that each sample lies in, one higher for the next of a shard."""
        shards, numbers = self._index.locate_all(sample_ids)
        found: npt.NDArray[np.int64] = shards + numbers // self._per_run[shards]
        return found

    def prefetch(self, sample_ids: npt.NDArray[np.int64]) -> None:
        """Start reading what these samples need, in the background, in their order."""
        shards, numbers = self._index.locate_all(sample_ids)
        runs = numbers // self._per_run[shards]
        for shard, run in dict.fromkeys(zip(shards.tolist(), runs.tolist(), strict=True)):
            self._start((shard, run))

    def read(self, sample_id: int) -> Sample:
        """Return the sample with this id.

        Raises `BadSample` if its bytes are not those that were indexed, even when they are read a
        second time, and whatever the store raises.
        """
        shard, number, run = self._place(sample_id)
        place = number % int(self._per_run[shard])
        # Samples next to each other are fetched together; another thread may have begun already.
        future = self._start(run)
        while True:
            fetched: _Fetched = future.result()
            if not fetched.problem:
                # `offset` and `length` span the tar members of the sample, headers included, and
                # `first` and `size` the image within them.
                offset, length, digest, first, size, label = fetched.rows[place].item()
                data = memoryview(fetched.data)[offset - fetched.start :][:length]
                if xxhash.xxh3_64_intdigest(data) == digest:
                    return Sample(data[first : first + size], label)
            if fetched.again:
                short = fetched.problem or len(data) < length
                text = "the shard ends before it" if short else "its bytes are not those indexed"
                text = fetched.problem or text
                raise BadSample("missing" if fetched.problem else "altered", text)
            # What differs may have been damaged on the way: replace it in the cache, once for all
            # threads that wait for this run.
            second = functools.partial(self._load_run, run, again=True)
            future = self._cache.get(self._key(run), second, instead_of=future)

    def identity(self, sample_id: int) -> str:
        """A name for the bytes and the label of a sample, wherever it lies."""
        shard, number, _ = self._place(sample_id)
        return f"{self._contents(shard)} sample {number}"

    def name(self, sample_id: int) -> str:
        """Describe a sample's place for people: shard, number, and byte and key if known."""
        shard, number, run = self._place(sample_id)
        text = f"{self._store.uri}{self._index.shards[shard].name}: sample {number}"
        fetched: _Fetched = self._start(run).result()
        if fetched.problem:
            return text
        row = fetched.rows[number % int(self._per_run[shard])]
        start = int(row["offset"]) - fetched.start
        key = key_in(fetched.data[start : start + int(row["length"])])
        return f"{text}, byte {row['offset']}{f' ({key})' if key else ''}"

    def _place(self, sample_id: int) -> tuple[int, int, ReadRun]:
        """Shard, number within it, and run."""
        shard, number = self._index.locate(sample_id)
        return shard, number, (shard, number // int(self._per_run[shard]))

    def _start(self, run: ReadRun) -> Future[Any]:
        return self._cache.get(self._key(run), lambda: self._load_run(run, again=False))

    def _key(self, run: ReadRun) -> tuple[str, str, int, int]:
        """Return the identity of a shard's contents, as other parts of the set share the cache."""
        shard, number = run
        return self._store.uri, self._index.shards[shard].sidecar, number, int(self._per_run[shard])

    def _load_run(self, run: ReadRun, *, again: bool) -> _Fetched:
        """Read a run; `again` from the store itself, after something was wrong with it."""
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
            return decode_sidecar(self._store.get(shard.sidecar), shard, len(self._index.classes))
        except ValueError as error:
            raise BadSample("missing", str(error)) from None

    def _scratch_name(self, run: ReadRun) -> str:
        return f"{self._contents(run[0])} {run[1]} {self._per_run[run[0]]}"

    def _contents(self, shard: int) -> str:
        """A shard by its bytes and labels: two data sets at one address are not confused."""
        entry = self._index.shards[shard]
        return f"{entry.sha256} {entry.sidecar_digest}"
