"""Image folders as shards."""

from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import contents, keys, labels_of, open_index
from tests.pictures import write_pictures
from worker.data.pack import find_splits, plan_shards, write_split
from worker.errors import ConfigurationError
from worker.store import Store, open_store


def pack(folder: Path, dest: str, threads: int = 2) -> list[Store]:
    stores = []
    for split in find_splits(folder):
        stores.append(open_store(f"{dest}/{split.name}"))
        write_split(split, stores[-1], 12_000, 0, threads, lambda: None)
    return stores


def test_packing_is_the_same_every_time(pictures: Path, bucket: str, tmp_path: Path) -> None:
    remote = pack(pictures, f"{bucket}/photos", threads=4)
    local = pack(pictures, str(tmp_path), threads=1)
    assert [store.uri for store in remote] == [f"{bucket}/photos/train/", f"{bucket}/photos/val/"]
    for one, other in zip(remote, local, strict=True):
        assert contents(one) == contents(other)
    assert len(open_index(remote[0].uri).shards) > 3


def test_any_webdataset_reader_reads_the_shards(pictures: Path, dataset: Path) -> None:
    urls = sorted(str(path) for path in (dataset / "train").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    found = {sample["__key__"]: sample for sample in samples}
    originals = {path: path.read_bytes() for path in (pictures / "train").rglob("*.jpg")}
    assert len(samples) == len(found) == len(originals) == 52
    for path, data in originals.items():
        sample = found[path.relative_to(pictures / "train").with_suffix("").as_posix()]
        assert sample["jpg"] == data
        assert int(sample["cls"]) == ["blue", "red"].index(path.parent.name)


def test_shards_mix_the_classes(dataset: Path) -> None:
    first = open_index(f"{dataset}/train").shards[0].samples
    assert len(set(labels_of(f"{dataset}/train")[:first])) == 2


def test_one_tree_and_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / "one tree"
    write_pictures(folder, 3)
    (folder / "red" / "a.b.JPEG").write_bytes((folder / "red" / "000.jpg").read_bytes())
    Image.new("RGB", (9, 9)).save(folder / "red" / "000.png")
    (folder / "red" / "notes.txt").write_text("not a picture")
    (folder / "red" / ".hidden.jpg").write_text("not a picture")
    (split,) = find_splits(folder)
    assert (split.name, split.classes, split.skipped) == ("", ("blue", "red"), 1)
    assert len({file.key for file in split.files}) == len(split.files) == 8
    store = open_store(f"{tmp_path}/out")
    write_split(split, store, 10**9, 0, 1, lambda: None)
    assert sorted(labels_of(store.uri)) == [0, 0, 0, 1, 1, 1, 1, 1]


def make_empty_class(folder: Path) -> None:
    write_pictures(folder, 1)
    (folder / "green").mkdir()


def make_unknown_class(folder: Path) -> None:
    write_pictures(folder / "train", 1)
    write_pictures(folder / "val", 1)
    (folder / "val" / "green").mkdir()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "holds no class folders"),
        (lambda folder: (folder / "a").mkdir(parents=True), "holds no images"),
        (make_empty_class, "green: holds no images"),
        (make_unknown_class, "class 'green' is not in"),
    ],
)
def test_folders_that_cannot_be_packed(
    make: Callable[[Path], object], complaint: str, tmp_path: Path
) -> None:
    make(tmp_path / "photos")
    with pytest.raises(ConfigurationError, match=complaint):
        find_splits(tmp_path / "photos")


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>"])
def test_what_is_no_image_is_refused_by_name(data: bytes, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 2)
    (tmp_path / "photos" / "red" / "x.jpg").write_bytes(data)
    with pytest.raises(ConfigurationError, match="red/x.jpg: not a JPEG, PNG or WebP"):
        pack(tmp_path / "photos", f"{tmp_path}/out")
    assert not (tmp_path / "out" / "index.json").exists()


def test_packing_again_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 6)
    (split,) = find_splits(tmp_path / "photos")
    store = open_store(f"{tmp_path}/out")
    write_split(split, store, 1, 0, 1, lambda: None)
    store.put("notes.txt", b"kept")
    assert len(keys(store)) == 26
    write_split(split, store, 10**9, 0, 1, lambda: None)
    (shard,) = open_index(store.uri).shards
    assert keys(store) == ["index.json", "notes.txt", shard.sidecar, "shard-000000.tar"]


@given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 9))
def test_every_file_is_in_one_shard(count: int, room: int, seed: int) -> None:
    from worker.data.pack import ImageFile

    files = [ImageFile(Path(str(n)), str(n), 0, 1 + n % 7) for n in range(count)]
    shards = plan_shards(files, room, seed)
    assert sorted(file.key for shard in shards for file in shard) == sorted(f.key for f in files)
    assert all(sum(f.bytes for f in shard) <= room or len(shard) == 1 for shard in shards)
