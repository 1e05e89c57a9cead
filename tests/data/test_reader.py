"""Samples are verified, read again and skipped one by one, in bounded memory."""

import io
import json
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash

from tests.support.processes import in_fresh_process
from tests.support.reading import counting
from tests.support.stores import open_index, open_reader
from worker.data.epoch_plan import EpochPlan
from worker.data.index import Index, Shard
from worker.data.read_cache import Cache
from worker.data.reader import BadSample, SampleReader
from worker.data.scratch import Scratch
from worker.data.sidecar import SIDECAR_DTYPE, decode_sidecar
from worker.errors import ConfigurationError, InfrastructureError
from worker.memory import configure_memory
from worker.store import Store


def read_all(reader: SampleReader, count: int) -> tuple[list[int], dict[int, BadSample]]:
    """Ids that can be read, and why the others cannot."""
    good, bad = [], {}
    for number in range(count):
        try:
            reader.read(number)
            good.append(number)
        except BadSample as problem:
            bad[number] = problem
    return good, bad


@pytest.mark.parametrize(
    ("damage", "reason", "lost"),
    [
        (lambda data, rows: data[: rows[3]["offset"]], "altered", range(3, 99)),
        (lambda data, rows: data[: rows[3]["offset"] + 100], "altered", range(3, 99)),
        (lambda data, rows: data[: rows[3]["offset"] + 2500], "altered", range(3, 99)),
        (
            lambda data, rows: (
                data[: (at := int(rows[3]["offset"]) + 2500)]
                + bytes([data[at] ^ 1])
                + data[at + 1 :]
            ),
            "altered",
            [3],
        ),
        (lambda data, rows: b"", "altered", range(99)),
        (lambda data, rows: None, "missing", range(99)),
    ],
    ids=["cut between samples", "cut in a header", "cut in data", "one bit", "empty", "missing"],
)
def test_only_what_is_altered_is_left_out(
    damage: Callable[[bytes, np.ndarray], bytes | None],
    reason: str,
    lost: range,
    damaged: Store,
) -> None:
    index = open_index(damaged.uri)
    shard = index.shards[1]
    rows = decode_sidecar(damaged.get(shard.sidecar), shard, len(index.classes))
    data = damage(damaged.get(shard.name), rows)
    damaged.delete(shard.name) if data is None else damaged.put(shard.name, data)
    reader = open_reader(damaged.uri)
    good, bad = read_all(reader, index.samples)
    first = index.shards[0].samples
    expected = [first + number for number in lost if number < shard.samples]
    assert sorted(bad) == expected
    assert {problem.reason for problem in bad.values()} == {reason}
    assert len(good) == index.samples - len(expected)
    assert f"{shard.name}: sample {expected[0] - first}" in reader.name(expected[0])


@pytest.mark.parametrize("kinds", [("name",), ("name", "sidecar"), ("sidecar",)])
def test_swapped_shards_are_noticed(kinds: tuple[str, ...], damaged: Store) -> None:
    index = open_index(damaged.uri)
    for kind in kinds:
        names = [getattr(shard, kind) for shard in index.shards[:2]]
        one, other = map(damaged.get, names)
        damaged.put(names[0], other)
        damaged.put(names[1], one)
    _, bad = read_all(open_reader(damaged.uri), index.samples)
    assert len(bad) == index.shards[0].samples + index.shards[1].samples


def test_a_lost_read_is_repeated_once(damaged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(damaged.uri)
    expected = bytes(open_reader(damaged.uri).read(0).image)
    get = damaged.get
    cut = iter([True])

    def flaky(key: str, start: int = 0, stop: int | None = None) -> bytes:
        data = get(key, start, stop)
        return data[:100] if key.endswith(".tar") and next(cut, False) else data

    monkeypatch.setattr(damaged, "get", flaky)
    assert bytes(SampleReader(damaged, index, cache=Cache(1 << 20)).read(0).image) == expected


def test_an_altered_run_is_not_read_for_each_of_its_samples(
    damaged: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(damaged.uri)
    damaged.put(index.shards[0].name, b"")
    reads = counting(damaged, monkeypatch)
    read_all(SampleReader(damaged, index, cache=Cache(1 << 20)), index.shards[0].samples)
    assert len(reads) == 2


def test_threads_agree_that_a_second_read_heals(damaged: Store, tmp_path: Path) -> None:
    index = open_index(damaged.uri)
    whole = Scratch(tmp_path / "scratch", 1 << 24, sharers=1)
    for _ in range(20):
        reader = SampleReader(damaged, index, cache=Cache(1 << 24), scratch=whole)
        for number in range(index.samples):
            reader.read(number)
        for path in (tmp_path / "scratch").rglob("*"):
            if path.is_file():
                path.write_bytes(bytes(path.stat().st_size))
        reader = SampleReader(damaged, index, cache=Cache(1 << 24), scratch=whole)
        with ThreadPoolExecutor(4) as pool:
            samples = list(pool.map(reader.read, range(index.samples)))
        assert len(samples) == index.samples


@pytest.mark.parametrize(("lanes", "memory"), [(32, 16), (32, 64), (128, 64)])
def test_little_memory_is_no_reason_to_read_everything_many_times(lanes: int, memory: int) -> None:
    index = simulated_index(50, 1000)
    store = Simulated()
    reader = SampleReader(store, index, cache=Cache(memory << 20), lanes=lanes)  # type: ignore[arg-type]
    plan = EpochPlan(index.counts, lanes * 2, 0, epoch=0, lanes=lanes, window=8)
    steps = 40
    for step in range(steps):
        ids = plan.batch(step)
        reader.prefetch(ids)
        for number in ids:
            reader.read(int(number))
    needed = steps * lanes * 2 * SIZE
    ahead = lanes * 2 * (memory << 20) / (4 * lanes)  # a run begun and one to be ended per lane
    assert store.read < 1.5 * needed + ahead


def test_an_outage_is_no_bad_sample(damaged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(damaged.uri)
    reader = SampleReader(damaged, index, cache=Cache(1 << 20))
    get = damaged.get

    def fail(key: str, start: int = 0, stop: int | None = None) -> bytes:
        raise InfrastructureError("gone")

    monkeypatch.setattr(damaged, "get", fail)
    with pytest.raises(InfrastructureError):
        reader.read(0)
    monkeypatch.setattr(damaged, "get", get)
    assert reader.read(0).image


@pytest.mark.parametrize(
    "text", ["", "{}", '{"version": 2, "classes": ["a"], "shards": []}', '{"version": 1}']
)
def test_a_wrong_index_is_configuration(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`worker pack` makes"):
        open_index(str(tmp_path))
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"index\.json.*pack or index again"):
        open_index(str(tmp_path))


SIZE = 40_960


BODY = np.random.default_rng(0).bytes(SIZE)


def simulated_sidecar(samples: int) -> bytes:
    rows = np.zeros(samples, dtype=SIDECAR_DTYPE)
    rows["offset"] = np.arange(samples) * SIZE
    rows["length"] = rows["image_length"] = SIZE
    rows["digest"] = xxhash.xxh3_64_intdigest(BODY)
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    return buffer.getvalue()


class Simulated:
    """A store of any number of shards of 1000 samples, all alike."""

    uri = "simulated/"

    def __init__(self) -> None:
        self.read = 0
        self._sidecar = simulated_sidecar(1000)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        if key.endswith(".npy"):
            return self._sidecar
        assert stop
        self.read += stop - start
        return BODY * ((stop - start) // SIZE)


def simulated_index(shards: int, samples: int) -> Index:
    digest = xxhash.xxh3_64_hexdigest(simulated_sidecar(samples))
    entry = {"bytes": samples * SIZE, "samples": samples, "sha256": "0" * 64}
    return Index(
        classes=("a", "b"),
        shards=tuple(
            Shard.model_validate({**entry, "name": f"s-{n}.tar", "sidecar_digest": digest})
            for n in range(shards)
        ),
    )


def measure_peak(shards: int, out: str) -> None:
    """Read 3840 of many samples of 40 KB, simulated; writes the growth of the peak in bytes."""
    configure_memory(keep_freed=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = simulated_index(shards, 1000)
    reader = SampleReader(Simulated(), index, cache=Cache(64 << 20), lanes=32)  # type: ignore[arg-type]
    plan = EpochPlan(index.counts, 64, 0, epoch=0)
    for step in range(60):
        ids = plan.batch(step % plan.steps)
        reader.prefetch(ids)
        for number in ids:
            reader.read(int(number))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path(out).write_text(json.dumps((peak - before) * 1024))


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path) -> None:
    peaks = []
    for shards in (10, 10_000):
        in_fresh_process(measure_peak, shards, str(tmp_path / "peak"))
        peaks.append(json.loads((tmp_path / "peak").read_text()))
    limit, in_flight = 64 << 20, 8 * (4 << 20)
    assert max(peaks) < limit + in_flight + (16 << 20)
    assert peaks[1] < peaks[0] + (16 << 20)
