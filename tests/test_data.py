"""Shards, index, reader and pixels."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from worker.data.decode import Draws, decode, for_evaluation, for_training, random_resized_crop

from tests.conftest import keys
from tests.pictures import write_pictures
from worker.data.index import read_index
from worker.data.loader import Batch, Loader
from worker.data.pack import find_splits, plan_shards, write_split
from worker.data.reader import Sample, SampleReader
from worker.errors import ConfigurationError, DataError
from worker.manifest import Augment
from worker.model.backbone import preprocessing_of
from worker.store import Store, open_store


def pack(folder: Path, dest: str, threads: int = 2) -> list[Store]:
    stores = []
    for split in find_splits(folder):
        stores.append(open_store(f"{dest}/{split.name}"))
        write_split(split, stores[-1], 12_000, 0, threads, lambda: None)
    return stores


def contents(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for key in keys(store)}


def test_packing_is_the_same_every_time(pictures: Path, bucket: str, tmp_path: Path) -> None:
    remote = pack(pictures, f"{bucket}/photos", threads=4)
    local = pack(pictures, str(tmp_path), threads=1)
    assert [store.uri for store in remote] == [f"{bucket}/photos/train/", f"{bucket}/photos/val/"]
    for one, other in zip(remote, local, strict=True):
        assert contents(one) == contents(other)
    assert len(read_index(remote[0]).shards) > 3


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
    store = open_store(f"{dataset}/train")
    index = read_index(store)
    reader = SampleReader(store, index)
    labels = [reader.read(number).label for number in range(index.shards[0].samples)]
    assert len(set(labels)) == 2


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
    index = write_split(split, store, 10**9, 0, 1, lambda: None)
    reader = SampleReader(store, index)
    assert sorted(reader.read(n).label for n in range(8)) == [0, 0, 0, 1, 1, 1, 1, 1]


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
    assert keys(store) == [
        "index.json",
        "notes.txt",
        "shard-000000.samples.npy",
        "shard-000000.tar",
    ]


@given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 9))
def test_every_file_is_in_one_shard(count: int, room: int, seed: int) -> None:
    from worker.data.pack import ImageFile

    files = [ImageFile(Path(str(n)), str(n), 0, 1 + n % 7) for n in range(count)]
    shards = plan_shards(files, room, seed)
    assert sorted(file.key for shard in shards for file in shard) == sorted(f.key for f in files)
    assert all(sum(f.bytes for f in shard) <= room or len(shard) == 1 for shard in shards)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20_000],
        lambda data: data[:3000] + bytes([data[3000] ^ 1]) + data[3001:],
        lambda data: b"",
        lambda data: None,
    ],
    ids=["truncated", "one bit", "empty", "missing"],
)
def test_altered_shards_never_reach_training(
    damage: Callable[[bytes], bytes | None], dataset: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "copy"))
    for key, data in contents(open_store(f"{dataset}/train")).items():
        store.put(key, data)
    index = read_index(store)
    name = index.shards[1].name
    damaged = damage(store.get(name))
    store.delete(name) if damaged is None else store.put(name, damaged)
    reader = SampleReader(store, index)
    first = index.shards[0].samples
    for number in range(first):
        reader.read(number)
    with pytest.raises(DataError, match=name):
        for number in range(first, first + index.shards[1].samples):
            reader.read(number)


def test_swapped_shards_are_noticed(dataset: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "copy"))
    for key, data in contents(open_store(f"{dataset}/train")).items():
        store.put(key, data)
    index = read_index(store)
    for kind in (".tar", ".samples.npy"):
        names = [shard.name.replace(".tar", kind) for shard in index.shards[:2]]
        one, other = map(store.get, names)
        store.put(names[0], other)
        store.put(names[1], one)
    with pytest.raises(DataError, match="not the sidecar that the index describes"):
        SampleReader(store, index).read(0)


def test_a_lost_read_is_repeated(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"{dataset}/train")
    index = read_index(store)
    expected = SampleReader(store, index).read(0)
    whole = store.get
    cut = iter([True])

    def flaky(key: str, start: int = 0, stop: int | None = None) -> bytes:
        data = whole(key, start, stop)
        return data[:100] if key.endswith(".tar") and next(cut, False) else data

    monkeypatch.setattr(store, "get", flaky)
    assert SampleReader(store, index).read(0) == expected


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1, "classes": ["a"], "shards": []}'])
def test_a_wrong_index_is_configuration(text: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(ConfigurationError, match="`worker pack` makes"):
        read_index(store)
    store.put("index.json", text.encode())
    with pytest.raises(ConfigurationError, match=r"index\.json.*pack the data again"):
        read_index(store)


def encoded(mode: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (60, 40), 200 if mode in "LI;16" else None or 0).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGB", "WEBP"),
    ],
)
def test_common_images_become_rgb(mode: str, kind: str) -> None:
    image = decode(Sample("x", encoded(mode, kind), 0))
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 40, 60))


def test_exif_orientation_is_applied() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(buffer, "JPEG", exif=exif)
    assert tuple(decode(Sample("x", buffer.getvalue(), 0)).shape) == (3, 60, 40)


def test_a_broken_image_names_its_sample() -> None:
    with pytest.raises(
        DataError, match=r"shard-7.tar, byte 9 \(k\): cannot be decoded \([^/]*\); repair"
    ):
        decode(Sample("shard-7.tar, byte 9 (k)", encoded("RGB", "JPEG")[:200], 0))


def test_pixels_are_fixed_by_seed_epoch_and_sample(dataset: Path) -> None:
    store = open_store(f"{dataset}/train")
    sample = SampleReader(store, read_index(store)).read(3)
    preprocessing = preprocessing_of("resnet18", 32)

    def pixels(*key: int) -> torch.Tensor:
        return for_training(sample, preprocessing, Augment(), (key[0], key[1], key[2]))

    assert pixels(0, 0, 3).shape == (3, 32, 32)
    assert torch.equal(pixels(0, 0, 3), pixels(0, 0, 3))
    for other in ((1, 0, 3), (0, 1, 3), (0, 0, 4)):
        assert not torch.equal(pixels(0, 0, 3), pixels(*other))


def test_evaluation_uses_the_weights_own_preset() -> None:
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 255, (300, 400, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    from torchvision.models import EfficientNet_B0_Weights

    preset = EfficientNet_B0_Weights.DEFAULT.transforms()
    ours = preprocessing_of("efficientnet_b0", None)
    pixels = for_evaluation(Sample("x", buffer.getvalue(), 0), ours)
    theirs = preset(picture)
    assert torch.allclose(ours.normalise(pixels[None])[0], theirs, atol=0.02)  # a level of 255


@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.integers(0, 2**32),
)
def test_crops_stay_inside(width: int, height: int, scale: list[float], key: int) -> None:
    top, left, h, w = random_resized_crop(width, height, (scale[0], scale[1]), Draws.keyed(41, key))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0
    assert w > 0


def test_flips_and_crops_follow_the_settings(dataset: Path) -> None:
    store = open_store(f"{dataset}/train")
    sample = SampleReader(store, read_index(store)).read(0)
    preprocessing = preprocessing_of("resnet18", 32)
    still = Augment(crop_scale=(1.0, 1.0), flip=0.0)
    always = Augment(crop_scale=(1.0, 1.0), flip=1.0)
    one = for_training(sample, preprocessing, still, (0, 0, 0))
    other = for_training(sample, preprocessing, always, (0, 0, 0))
    assert torch.equal(one.flip(-1), other)


def test_batches_come_in_the_order_asked_for(dataset: Path) -> None:
    store = open_store(f"{dataset}/train")
    index = read_index(store)
    ids = [np.array(part) for part in ([5, 2, 40], [], [7], [51, 0], [1], [2], [3], [4])]
    reader = SampleReader(store, index)
    loader = Loader(reader, threads=3, pin_memory=False)
    preprocessing = preprocessing_of("resnet18", 24)
    got: list[Batch] = list(
        loader.batches(ids, lambda sample, _: for_evaluation(sample, preprocessing), 24)
    )
    assert [batch.ids.tolist() for batch in got] == [part.tolist() for part in ids]
    assert got[0].images.shape == (3, 3, 24, 24)
    assert got[1].images.shape == (0, 3, 24, 24)
    assert got[3].labels.tolist() == [reader.read(51).label, reader.read(0).label]
    loader.close()
