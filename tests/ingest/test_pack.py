"""Packing is deterministic, complete and readable by any WebDataset reader."""

import tarfile
from pathlib import Path

import webdataset
from PIL import Image

from tests.support.folders import tree
from tests.support.packs import pack_folder
from tests.support.pictures import write_pictures
from tests.support.processes import Run
from tests.support.stores import contents, keys, labels_of, open_index
from worker.data.sample_table import table_name
from worker.ingest.file_tree import open_tree
from worker.ingest.image_folder import find_splits
from worker.store import open_store


def test_packing_is_the_same_every_time(pictures: Path, bucket: str, tmp_path: Path) -> None:
    pack_folder(pictures, f"{bucket}/photos", workers=4)
    pack_folder(pictures, str(tmp_path / "photos"))
    for split in ("train", "val"):
        remote = contents(open_store(f"{bucket}/photos/{split}"))
        local = contents(open_store(f"{tmp_path}/photos/{split}"))
        assert remote == local
    assert len(open_index(f"{bucket}/photos/train").shards) > 3
    assert not [key for key in keys(open_store(f"{bucket}/photos")) if ".pack/" in key]


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
    (split,) = find_splits(open_tree(str(folder)))
    assert (split.name, split.classes) == ("", ("blue", "red"))
    assert split.passed_over == {".txt file": 1, "hidden file": 1}
    assert len({file.key for file in split.files}) == len(split.files) == 8
    pack_folder(folder, f"{tmp_path}/out")
    assert sorted(labels_of(f"{tmp_path}/out")) == [0, 0, 0, 1, 1, 1, 1, 1]


def make_bad(folder: Path) -> None:
    """Two of 3 red and 3 blue images cut short or no images, of which the names say nothing."""
    write_pictures(folder, 3)
    whole = next((folder / "red").glob("*")).read_bytes()
    (folder / "red" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "blue" / "page.png").write_bytes(b"<html>not found</html>")


def test_every_image_is_decoded_and_all_bad_ones_are_listed(run: Run, tmp_path: Path) -> None:
    make_bad(tmp_path / "photos" / "train")
    make_bad(tmp_path / "photos" / "val")
    (tmp_path / "photos" / "val" / "blue" / "none.jpg").touch()
    (tmp_path / "photos" / "val" / "blue" / "moves.gif").write_bytes(b"GIF89a")
    with (tmp_path / "photos" / "val" / "blue" / "huge.jpg").open("wb") as huge:
        huge.truncate(1 << 40)  # reading it would take all memory
    ended = run("pack", f"{tmp_path}/photos", f"{tmp_path}/set")
    assert ended.code == 65
    assert not list((tmp_path / "set").glob("*.json"))
    (event,) = ended.events
    assert "6 images cannot be used; repair or remove them, or pass --bad skip:" in ended.err
    for split in ("train", "val"):
        assert f"{split}/red/cut.jpg: cannot be decoded" in event["message"]
    assert "train/blue/page.png: is not a JPEG, PNG or WebP image" in event["message"]
    assert "val/blue/none.jpg: is empty" in event["message"]
    assert "val/blue/huge.jpg: is larger than 256 MiB" in event["message"]
    assert "left out: 1 .gif image" in ended.err, "what else is to be repaired is said at once"


def test_bad_images_are_left_out_within_a_budget(run: Run, tmp_path: Path) -> None:
    make_bad(tmp_path / "photos")
    arguments = ("pack", f"{tmp_path}/photos", f"{tmp_path}/set", "--bad", "skip")
    assert run(*arguments[:-2], "--error-budget", "0.2").code == 2
    ended = run(*arguments, "--error-budget", "0.2")
    assert ended.code == 65
    assert "2 images cannot be used; more than --error-budget 0.2 allows" in ended.err
    bad = tmp_path / "photos" / "red" / "cut.jpg"
    cut = bad.read_bytes()
    bad.unlink()
    one = run("pack", f"{tmp_path}/photos", f"{tmp_path}/one", "--bad", "skip")
    assert one.code == 0, "one may always be left out"
    bad.write_bytes(cut)
    ended = run(*arguments, "--error-budget", "0.25")
    assert ended.code == 0, ended.err
    assert ended.err.count("left out: ") == 2
    assert open_index(f"{tmp_path}/set").samples == 6


def test_a_class_of_nothing_but_bad_images_is_refused(run: Run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 3)
    for path in (tmp_path / "photos" / "red").iterdir():
        path.write_bytes(b"no image")
    budget = ("--bad", "skip", "--error-budget", "0.9")
    ended = run("pack", f"{tmp_path}/photos", f"{tmp_path}/set", *budget)
    assert ended.code == 78
    assert "the class 'red' has no images in the data set" in ended.err


def test_jpegs_by_their_other_names_and_images_to_be_converted(run: Run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 3)
    red = sorted((tmp_path / "photos" / "red").iterdir())
    red[0].rename(red[0].with_suffix(".jfif"))
    red[1].rename(red[1].with_suffix(".JPE"))
    red[2].rename(red[2].with_suffix(".tif"))
    ended = run("pack", f"{tmp_path}/photos", f"{tmp_path}/set")
    assert ended.code == 0, ended.err
    assert "left out: 1 .tif image" in ended.err
    assert "convert those images to JPEG, PNG or WebP" in ended.err
    assert open_index(f"{tmp_path}/set").samples == 5
    for path in (tmp_path / "set").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {name.rpartition(".")[2] for name in tar.getnames()} <= {"cls", "jpg", "png"}


def test_packing_again_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 6)
    store = open_store(f"{tmp_path}/out")
    pack_folder(tmp_path / "photos", store.uri, shard_bytes=1)
    store.put("notes.txt", b"kept")
    assert len(keys(store)) == 28
    (index,) = pack_folder(tmp_path / "photos", store.uri, shard_bytes=10**9)
    (shard,) = index.shards
    table = table_name(index.table or "")
    own = [table, shard.sidecar, shard.name]
    assert keys(store) == ["dataset.json", "index.json", "notes.txt", *own]


def test_odd_names_are_read_by_any_webdataset_reader(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    tree(
        photos,
        *("__x__/0.png", "a.b/v1.2.png", "a.b/v1_2.png", "c/caf\udce9.png", "c/__y__.png"),
    )
    (index,) = pack_folder(photos, f"{tmp_path}/out", shard_bytes=10**9)
    (url,) = [str(path) for path in (tmp_path / "out").glob("*.tar")]
    keys_read = [s["__key__"] for s in webdataset.WebDataset([url], shardshuffle=False)]
    assert len(keys_read) == len(set(keys_read)) == index.samples == 5
    assert index.classes == ("__x__", "a.b", "c")
