"""Decoded images on scratch: the same batches without decoding, whatever becomes of the files."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.processes import Run
from tests.support.sabotage import keep_small_images
from tests.support.stores import open_index
from worker.data import loader as loader_module
from worker.data.augment import Augmentation
from worker.data.decode_image import ImageSpec
from worker.data.decoded_cache import DecodedImages
from worker.data.epoch_plan import EpochPlan
from worker.data.loader import Batch, Loader
from worker.data.read_cache import Cache
from worker.data.reader import SampleReader
from worker.data.scratch import Scratch
from worker.manifest import Augment
from worker.model.backbone import preprocessing_of
from worker.store import open_store

PREPROCESSING = preprocessing_of("resnet18").at(24)
MEBIBYTE = 1 << 20


class Decoding:
    """The pictures of the fixture `dataset`, decoded with a scratch folder, or without."""

    def __init__(self, uri: str, scratch: Path | None, limit: int = 64 * MEBIBYTE) -> None:
        self.index = open_index(uri)
        room = Scratch(scratch, limit, 1, reserve=0) if scratch else None
        self.reader = SampleReader(open_store(uri), self.index, cache=Cache(1 << 24), scratch=room)
        self.decoded = DecodedImages(room, self.reader, ImageSpec(10**6)) if room else None
        self._loader = Loader(self.reader, 2, ImageSpec(10**6), decoded=self.decoded)

    def epoch(self, epoch: int) -> list[Batch]:
        """All batches of an epoch, and everything written that was going to be."""
        plan = EpochPlan(self.index.counts, 8, 0, epoch=epoch)
        ids = [plan.batch(step) for step in range(plan.steps)]
        prepare_for = Augmentation(PREPROCESSING, Augment(), 0).prepare_for(epoch)
        batches = list(self._loader.batches(ids, prepare_for, size=24))
        if self.decoded:
            self.decoded._waiting.join()
        return batches


def require_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.valid, other.valid)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the images that are decoded; grows."""
    found: list[int] = []
    real = getattr(loader_module, "decode")

    def decode(data: memoryview, spec: ImageSpec) -> torch.Tensor:
        found.append(len(data))
        return real(data, spec)

    monkeypatch.setattr(loader_module, "decode", decode)
    return found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures here are kept, too."""
    monkeypatch.setattr("worker.data.decoded_cache._SMALLEST", 0)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def files(scratch: Path) -> list[Path]:
    return sorted(scratch.rglob("*.spare"))


def test_later_epochs_decode_nothing_and_are_the_same(
    dataset: Path, tmp_path: Path, calls: list[int]
) -> None:
    uri = f"{dataset}/train"
    kept, plain = Decoding(uri, tmp_path), Decoding(uri, None)
    expected = [plain.epoch(epoch) for epoch in range(3)]
    calls.clear()
    require_same(kept.epoch(0), expected[0])
    assert len(calls) == kept.index.samples
    for epoch in (1, 2):
        require_same(kept.epoch(epoch), expected[epoch])
    require_same(Decoding(uri, tmp_path).epoch(1), expected[1])  # and for another process
    assert len(calls) == kept.index.samples


def test_nothing_is_fetched_for_what_is_decoded(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{dataset}/train"
    Decoding(uri, tmp_path).epoch(0)
    later = Decoding(uri, tmp_path)
    monkeypatch.setattr(later.reader, "read", None)
    monkeypatch.setattr(later.reader, "_start", None)
    assert sum(len(batch.ids) for batch in later.epoch(1)) == later.index.samples


def test_what_was_altered_cut_or_lost_is_decoded_again(
    dataset: Path, tmp_path: Path, calls: list[int]
) -> None:
    uri = f"{dataset}/train"
    expected = Decoding(uri, None).epoch(1)
    kept = Decoding(uri, tmp_path)
    kept.epoch(0)
    calls.clear()
    altered, cut, lost, header = files(tmp_path)[:4]
    altered.write_bytes(altered.read_bytes()[:-1] + b"\x80")
    cut.write_bytes(cut.read_bytes()[:100])
    lost.unlink()
    header.write_bytes(b"\xff" * 24)
    require_same(kept.epoch(1), expected)
    assert len(calls) == 4
    require_same(kept.epoch(1), expected)
    assert len(calls) == 4  # they have been written again


def test_encoded_bytes_come_first_where_room_is_short(dataset: Path, tmp_path: Path) -> None:
    uri = f"{dataset}/train"
    decoding = Decoding(uri, None)
    encoded = sum(shard.bytes for shard in decoding.index.shards)
    scratch = Scratch(tmp_path, 2 * encoded, 1, reserve=encoded)
    reader = SampleReader(open_store(uri), decoding.index, cache=Cache(1 << 24), scratch=scratch)
    decoded = DecodedImages(scratch, reader, ImageSpec(10**6))
    big = torch.zeros(3, 100, encoded // 2000, dtype=torch.uint8)  # of 15% of the encoded bytes
    for number in range(20):
        decoded.put(number, big, 0)
        decoded._waiting.join()
    spare = size_of(tmp_path)
    assert 0 < spare <= encoded
    for number in range(decoding.index.samples):
        reader.read(number)
    roomy = Scratch(tmp_path / "roomy", 1 << 24, 1)
    everything = SampleReader(open_store(uri), decoding.index, cache=Cache(1 << 24), scratch=roomy)
    for number in range(decoding.index.samples):
        everything.read(number)
    assert size_of(tmp_path / "worker-cache") == spare + size_of(tmp_path / "roomy")


def test_a_slow_disk_does_not_slow_decoding(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr("worker.data.decoded_cache._WAITING", 2 * (24 + image.numel()))
    release = threading.Event()
    real = Scratch.put_spare

    def stuck(*arguments: object) -> None:
        release.wait()
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Scratch, "put_spare", stuck)
    kept = Decoding(f"{dataset}/train", tmp_path)
    assert kept.decoded
    for number in range(10):
        kept.decoded.put(number, image, 0)
    release.set()
    kept.decoded._waiting.join()
    assert len(files(tmp_path)) == 2
    kept.decoded.put(11, image, 0)  # there is room again
    kept.decoded._waiting.join()
    assert len(files(tmp_path)) == 3


def test_small_images_are_not_kept(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.data.decoded_cache._SMALLEST", 1 << 16)
    Decoding(f"{dataset}/train", tmp_path).epoch(0)
    assert not files(tmp_path)


def test_a_lost_mount_and_a_huge_file_are_as_if_nothing_were_there(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{dataset}/train"
    expected = Decoding(uri, None).epoch(1)
    kept = Decoding(uri, tmp_path)
    kept.epoch(0)
    os.truncate(files(tmp_path)[0], 1 << 40)
    require_same(kept.epoch(1), expected)
    real = Path.stat

    def lost(path: Path, **options: bool) -> os.stat_result:
        if path.suffix == ".spare":
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", lost)
    require_same(kept.epoch(1), expected)


def test_a_restart_removes_no_encoded_bytes_for_decoded_ones(tmp_path: Path) -> None:
    old = Scratch(tmp_path, 1000, 1)
    for number in range(8):
        old.put(f"run {number}", bytes(100))
    for path in (tmp_path / "worker-cache").iterdir():
        os.utime(path, (0, 0))
    new = Scratch(tmp_path, 1000, 1, reserve=2000)
    new.put_spare("image", bytes(100))
    assert not new.has_spare("image")
    assert all(new.get(f"run {number}") for number in range(8))


def test_decoded_images_make_room_first(tmp_path: Path) -> None:
    old = Scratch(tmp_path, 1000, 1)
    for number in range(4):
        old.put(f"run {number}", bytes(100))
        old.put_spare(f"image {number}", bytes(100))
    for path in (tmp_path / "worker-cache").iterdir():
        os.utime(path, (0, 0))
    new = Scratch(tmp_path, 700, 1, reserve=2000)
    new.put("another", bytes(100))
    assert new.get("another")
    assert all(new.get(f"run {number}") for number in range(4))
    assert sum(new.has_spare(f"image {number}") for number in range(4)) < 4


def test_labels_and_limits_are_part_of_a_name(dataset: Path, tmp_path: Path) -> None:
    uri = f"{dataset}/train"
    kept = Decoding(uri, tmp_path)
    kept.epoch(0)
    assert kept.decoded
    ids = np.arange(kept.index.samples)
    assert not len(kept.decoded.missing(ids))
    room = kept.reader.scratch
    assert room
    assert len(DecodedImages(room, kept.reader, ImageSpec(10**5)).missing(ids)) == len(ids)
    kept.index.shards[0].__dict__["sidecar_digest"] = 0  # as with other labels
    assert len(kept.decoded.missing(ids)) == kept.index.shards[0].samples


def test_a_job_with_scratch_ends_with_the_same_weights(
    job: dict[str, object],
    write: Callable[[dict[str, object]], str],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    weights, decoded = [], []
    for name in ("plain", "scratch"):
        if name == "scratch":
            monkeypatch.setenv("WORKER_SCRATCH", str(tmp_path / "scratch"))
        monkeypatch.setenv("DECODED", str(tmp_path / f"{name}.txt"))
        output = f"{tmp_path}/{name}/"
        ended = run(
            "train", "--nproc", "2", write(job | {"output": output}), sabotage=keep_small_images
        )
        assert ended.code == 0, ended.err
        weights.append((tmp_path / name / "final/model.safetensors").read_bytes())
        decoded.append((tmp_path / f"{name}.txt").stat().st_size)
    assert weights[0] == weights[1]
    assert decoded[0] == 2 * (52 + 14)  # of two epochs
    assert 52 + 14 <= decoded[1] < decoded[0]
    assert not list((tmp_path / "scratch").rglob("tmp*"))
