"""Scratch on local disk spares the store, within bounds."""

import os
import threading
from pathlib import Path

import pytest

from tests.support.reading import counting
from tests.support.stores import open_index
from worker.data.read_cache import Cache
from worker.data.reader import SampleReader
from worker.data.scratch import Scratch
from worker.store import Store


def test_scratch_spares_the_store(
    damaged: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(damaged.uri)
    reads = counting(damaged, monkeypatch)

    def read() -> list[bytes]:
        scratch = Scratch(tmp_path / "scratch", 1 << 20, sharers=1)
        reader = SampleReader(damaged, index, cache=Cache(1 << 20), scratch=scratch)
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
