"""Packed sets as sources."""

from pathlib import Path

import pytest

from tests.support.processes import Run
from tests.support.tars import image, tar
from worker.data import reader
from worker.data.reader import BadSample
from worker.ingest import packed_source
from worker.ingest.packed_source import PackedSource
from worker.store import open_store


def images(source: PackedSource) -> list[tuple[str, str | None, str, bytes]]:
    return [(item.key, item.label, item.group, item.load()) for item in source.items(0)]


def test_samples_too_large_for_memory_are_read_piece_by_piece(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [
        ("a.cls", b"0"),
        ("a.jpg", image()),
        ("a.group", b"patient 1"),
        ("a.mp4", bytes(300_000)),
        ("b.cls", b"1"),
        ("b.jpg", image(shade=9)),
    ]
    (tmp_path / "x-000000.tar").write_bytes(tar(members))
    assert run("index", str(tmp_path)).code == 0
    stores = {"": open_store(str(tmp_path))}
    whole = images(PackedSource(stores))
    assert [(key, group) for key, _, group, _ in whole] == [("a", "patient 1"), ("b", "")]
    monkeypatch.setattr(packed_source, "MAX_IMAGE_BYTES", 100_000)
    monkeypatch.setattr(packed_source, "_READ", 7_000)
    assert images(PackedSource(stores)) == whole
    for module in (packed_source, reader):
        monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 100)
    for item in PackedSource(stores).items(0):
        with pytest.raises(BadSample, match="is larger than"):
            item.load()
