"""Bytes from the store: verified, read again, cached within bounds, with and without scratch."""

import io
import json
import os
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash

from tests.support.processes import in_fresh_process
from tests.support.stores import open_index, open_reader
from worker.data.epoch_plan import EpochPlan
from worker.data.index import (
    SIDECAR_DTYPE,
    Index,
    Shard,
    decode_sidecar,
    parse_address,
    read_index,
)
from worker.data.read_cache import Cache
from worker.data.reader import BadSample, SampleReader
from worker.data.scratch import Scratch
from worker.errors import ConfigurationError, InfrastructureError
from worker.memory import configure_memory
from worker.store import Store, open_store


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


def counting(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tars that are read from `store`, as they are."""
    names: list[str] = []
    get = store.get

    def counted(key: str, start: int = 0, stop: int | None = None) -> bytes:
        if key.endswith(".tar"):
            names.append(key)
        return get(key, start, stop)

    monkeypatch.setattr(store, "get", counted)
    return names


def test_a_lost_read_is_repeated_once(damaged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(damaged.uri)
    expected = bytes(open_reader(damaged.uri).read(0).image)
    get = damaged.get
    cut = iter([True])

    def flaky(key: str, start: int = 0, stop: int | None = None) -> bytes:
        data = get(key, start, stop)
        return data[:100] if key.endswith(".tar") and next(cut, False) else data

    monkeypatch.setattr(damaged, "get", flaky)
    assert bytes(SampleReader(damaged, index, Cache(1 << 20)).read(0).image) == expected


def test_an_altered_run_is_not_read_for_each_of_its_samples(
    damaged: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(damaged.uri)
    damaged.put(index.shards[0].name, b"")
    reads = counting(damaged, monkeypatch)
    read_all(SampleReader(damaged, index, Cache(1 << 20)), index.shards[0].samples)
    assert len(reads) == 2


def test_threads_agree_that_a_second_read_heals(damaged: Store, tmp_path: Path) -> None:
    index = open_index(damaged.uri)
    whole = Scratch(tmp_path / "scratch", 1 << 24, sharers=1)
    for _ in range(20):
        reader = SampleReader(damaged, index, Cache(1 << 24), whole)
        for number in range(index.samples):
            reader.read(number)
        for path in (tmp_path / "scratch").rglob("*"):
            if path.is_file():
                path.write_bytes(bytes(path.stat().st_size))
        reader = SampleReader(damaged, index, Cache(1 << 24), whole)
        with ThreadPoolExecutor(4) as pool:
            samples = list(pool.map(reader.read, range(index.samples)))
        assert len(samples) == index.samples


@pytest.mark.parametrize(("lanes", "memory"), [(32, 16), (32, 64), (128, 64)])
def test_little_memory_is_no_reason_to_read_everything_many_times(lanes: int, memory: int) -> None:
    index = simulated_index(50, 1000)
    store = Simulated()
    reader = SampleReader(store, index, Cache(memory << 20), lanes=lanes)  # type: ignore[arg-type]
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
    reader = SampleReader(damaged, index, Cache(1 << 20))
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


def test_a_pattern_names_some_of_the_shards(dataset: Path) -> None:
    whole = open_index(f"{dataset}/train")
    some = open_index(f"{dataset}/train/shard-{{000001..000002}}.tar")
    assert some.shards == whole.shards[1:3]
    one = open_index(f"{dataset}/train/shard-000000.tar")
    assert one.shards == whole.shards[:1]
    assert len({whole.digest, some.digest, one.digest}) == 3
    with pytest.raises(ConfigurationError, match="lists no shard-000099.tar"):
        open_index(f"{dataset}/train/shard-{{000098..000099}}.tar".replace("98", "99"))
    with pytest.raises(ConfigurationError, match="brace is not closed"):
        open_index(f"{dataset}/train/shard-{{000001.tar")


class Blob:
    """A value of a stated size."""

    def __init__(self, size: int) -> None:
        self.nbytes = size


def test_the_cache_loads_once_and_stays_within_its_bound() -> None:
    cache = Cache(100)
    loads: list[int] = []

    def load(key: int) -> Blob:
        loads.append(key)
        time.sleep(0.001)
        return Blob(30)

    for key in (0, 0, 1, 0, 2, 3, 3):
        cache.get(key, lambda key=key: load(key)).result()  # type: ignore[misc]
    assert loads == [0, 1, 2, 3]
    cache.get(0, lambda: load(0)).result()  # used later than 1, so still there
    cache.get(1, lambda: load(1)).result()
    assert loads == [0, 1, 2, 3, 1]
    wait_until(lambda: cache._bytes <= 100)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_scratch_spares_the_store(
    damaged: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(damaged.uri)
    reads = counting(damaged, monkeypatch)

    def read() -> list[bytes]:
        scratch = Scratch(tmp_path / "scratch", 1 << 20, sharers=1)
        reader = SampleReader(damaged, index, Cache(1 << 20), scratch)
        return [bytes(reader.read(number).image) for number in range(index.samples)]

    first = read()
    assert len(reads) == len(index.shards)
    assert read() == first
    assert len(reads) == len(index.shards)
    for path in (tmp_path / "scratch").rglob("*"):  # whatever lies there is verified
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-600])
    assert read() == first
    assert len(reads) == 2 * len(index.shards)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_scratch_is_bounded_and_only_stale_files_make_room(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("not for you to remove")
    os.utime(mine, (0, 0))
    old = Scratch(tmp_path, 1000, sharers=1)
    for number in range(20):
        old.put(f"old-{number}", bytes(100))
    assert used(tmp_path / "worker-cache") == 1000
    for path in (tmp_path / "worker-cache").iterdir():
        os.utime(path, (0, 0))
    new = Scratch(tmp_path, 1000, sharers=2)
    for number in range(20):
        new.put(f"new-{number}", bytes(100))
    kept = [number for number in range(20) if new.get(f"new-{number}")]
    assert kept == list(range(9))  # its own are in use, so later ones stay out
    assert not new.get("old-0")
    assert used(tmp_path / "worker-cache") <= 1000
    assert mine.exists()


def test_scratch_may_vanish_or_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scratch = Scratch(tmp_path / "a", 1 << 20, sharers=1)
    scratch.put("x", b"1")
    (tmp_path / "a").rename(tmp_path / "b")
    assert scratch.get("x") is None
    scratch.put("x", b"2")
    assert scratch.get("x") == b"2"
    (tmp_path / "file").write_bytes(b"")
    broken = Scratch(tmp_path / "file", 1 << 20, sharers=1)
    for _ in range(3):
        broken.put("x", b"1")
    assert broken.get("x") is None
    assert caplog.text.count("continuing without") == 1


def test_ranks_share_scratch_at_once(tmp_path: Path) -> None:
    scratches = [Scratch(tmp_path, 100_000, sharers=4) for _ in range(4)]
    wrong: list[str] = []
    hits: list[bool] = []

    def work(scratch: Scratch) -> None:
        for number in range(300):
            data = scratch.get(f"{number}")
            hits.append(data is not None)
            if data is None:
                scratch.put(f"{number}", bytes([number % 256]) * 400)
            elif data != bytes([number % 256]) * 400:
                wrong.append(f"{number}")

    threads = [threading.Thread(target=work, args=(scratch,)) for scratch in scratches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert any(hits)
    assert 0 < used(tmp_path) <= 100_000


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
    reader = SampleReader(Simulated(), index, Cache(64 << 20), lanes=32)  # type: ignore[arg-type]
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


def test_parts_of_one_folder_may_share_a_cache(dataset: Path) -> None:
    address = parse_address(f"{dataset}/train")
    whole = read_index(address)
    cache = Cache(64 << 20)
    parts = [
        SampleReader(address.store, whole.model_copy(update={"shards": (shard,)}), cache)
        for shard in whole.shards[:2]
    ]
    first = whole.shards[0].samples
    alone = open_reader(f"{dataset}/train")
    assert parts[0].read(0) == alone.read(0)
    assert parts[1].read(0) == alone.read(first)


def test_reading_a_named_part_reads_that_part(dataset: Path) -> None:
    whole, part = f"{dataset}/train", f"{dataset}/train/shard-000001.tar"
    first = open_index(whole).shards[0].samples
    assert open_reader(part).read(0) == open_reader(whole).read(first)
    address = parse_address(part)
    assert read_index(address).samples == open_index(whole).shards[1].samples
    assert address.store.uri == open_store(whole).uri
