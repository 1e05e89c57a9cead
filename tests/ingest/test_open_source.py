"""Sources of every kind come in with the labels and counts that other tools find in them."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image
from torchvision.datasets import ImageFolder

from tests.support.pictures import write_pictures
from tests.support.processes import Run
from tests.support.stores import contents, open_index
from tests.support.tars import labeled, tar
from worker.data.index import parse_address
from worker.data.sample_table import read_table
from worker.ingest.dataset_record import DatasetRecord, read_dataset_record
from worker.store import open_store


def counts_of(uri: str) -> dict[str, int]:
    """Number of images by class, from the index and its table."""
    index = open_index(uri)
    labels = read_table(parse_address(uri).store, index)["label"]
    return {name: labels.tolist().count(n) for n, name in enumerate(index.classes)}


def record_of(uri: str) -> DatasetRecord:
    record = read_dataset_record(open_store(uri))
    assert record
    return record


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """12 pictures in blue/ and red/."""
    write_pictures(tmp_path / "photos", 6)
    return tmp_path / "photos"


def packed(run: Run, source: Path | str, dest: Path, *options: str) -> str:
    ended = run("pack", str(source), str(dest), *options)
    assert ended.code == 0, ended.err
    return ended.err + ended.out


def write_csv(path: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def test_an_image_folder_like_torchvisions(run: Run, photos: Path, tmp_path: Path) -> None:
    theirs = ImageFolder(str(photos))
    packed(run, photos, tmp_path / "set")
    ours = counts_of(f"{tmp_path}/set")
    assert list(ours) == theirs.classes
    assert list(ours.values()) == [theirs.targets.count(n) for n in range(2)]


def test_an_image_folder_in_a_bucket(run: Run, photos: Path, bucket: str, tmp_path: Path) -> None:
    """S3 to S3 gives the same bytes as disk to disk."""
    store = open_store(f"{bucket}/photos")
    for key, data in contents(open_store(str(photos))).items():
        store.put(key, data)
    packed(run, f"{bucket}/photos", Path("ignored"), "--dry-run")
    assert run("pack", f"{bucket}/photos", f"{bucket}/set").code == 0
    packed(run, photos, tmp_path / "set")
    remote, local = contents(open_store(f"{bucket}/set")), contents(open_store(f"{tmp_path}/set"))
    del remote["dataset.json"], local["dataset.json"]  # they name their sources
    assert remote == local


def test_roboflows_folders(run: Run, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        write_pictures(tmp_path / "robo" / split, 2, seed=number)
    (tmp_path / "robo" / "README.roboflow.txt").write_text("exported")
    text = packed(run, tmp_path / "robo", tmp_path / "set")
    assert "image folder with train, val, test" in text
    for split in ("train", "val", "test"):
        assert counts_of(f"{tmp_path}/set/{split}") == {"blue": 2, "red": 2}


def test_kaggles_names_without_suffixes(run: Run, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kaggle"
    (folder / "train").mkdir(parents=True)
    rows = [["id", "breed"]]
    for path in sorted(photos.rglob("*.jpg")):
        name = f"{path.parent.name}{path.stem}"
        (folder / "train" / f"{name}.jpg").write_bytes(path.read_bytes())
        rows.append([name, path.parent.name])
    table = write_csv(folder / "labels.csv", rows)
    text = packed(run, table, tmp_path / "set")
    assert "image from 'id', label from 'breed', images in train/" in text
    frame = pandas.read_csv(table)
    assert counts_of(f"{tmp_path}/set") == dict(sorted(frame["breed"].value_counts().items()))


def test_images_and_a_csv(run: Run, photos: Path, tmp_path: Path) -> None:
    """Pascal's way, with a column of splits and one of patients."""
    folder = tmp_path / "pascal"
    (folder / "images").mkdir(parents=True)
    rows = [["filename", "class", "patient", "subset"]]
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        name = f"{number:03d}.jpg"
        (folder / "images" / name).write_bytes(path.read_bytes())
        rows.append(
            [name, path.parent.name, f"p{number // 3}", "Training" if number % 3 else "dev"]
        )
    table = write_csv(folder / "annotations.csv", rows)
    packed(run, table, tmp_path / "set")
    assert sum(counts_of(f"{tmp_path}/set/train").values()) == 8
    assert sum(counts_of(f"{tmp_path}/set/val").values()) == 4


def test_sagemakers_manifest_and_list(run: Run, photos: Path, bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}/in")
    lines, listed = [], []
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        store.put(f"{number}.jpg", path.read_bytes())
        label = int(path.parent.name == "red")
        row = {
            "source-ref": f"{bucket}/in/{number}.jpg",
            "job": label,
            "job-metadata": {
                "class-name": path.parent.name,
                "confidence": 0.9,
                "type": "groundtruth",
            },
        }
        lines.append(json.dumps(row))
        listed.append(f"{number}\t{label}\t{number}.jpg")
    (tmp_path / "augmented.manifest").write_text("\n".join(lines))
    packed(run, tmp_path / "augmented.manifest", tmp_path / "one")
    assert counts_of(f"{tmp_path}/one") == {"blue": 6, "red": 6}
    (tmp_path / "train.lst").write_text("\n".join(listed))
    packed(run, tmp_path / "train.lst", tmp_path / "two", "--root", f"{bucket}/in")
    assert counts_of(f"{tmp_path}/two") == {"0": 6, "1": 6}


def test_vertex_and_azure(run: Run, photos: Path, tmp_path: Path) -> None:
    """Their images are in stores that cannot be read here, and are looked for below --root."""
    vertex, plain, azure = [], [], []
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        where = f"gs://my-bucket/{path.relative_to(photos)}"
        use = ("training", "validation")[number % 2]
        vertex.append(
            {
                "imageGcsUri": where,
                "classificationAnnotation": {"displayName": path.parent.name},
                "dataItemResourceLabels": {"aiplatform.googleapis.com/ml_use": use},
            }
        )
        plain.append([use.upper(), where, path.parent.name])
        azure.append(
            {
                "image_url": f"azureml://subscriptions/x/{path.relative_to(photos)}",
                "label": path.parent.name,
            }
        )
    for name, rows in (("vertex", vertex), ("azure", azure)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_csv(tmp_path / "plain.csv", plain)
    for name in ("vertex", "plain"):
        table = next(tmp_path.glob(f"{name}.*"))
        packed(run, table, tmp_path / name, "--root", str(photos))
        for split in ("train", "val"):
            assert counts_of(f"{tmp_path}/{name}/{split}") == {"blue": 3, "red": 3}
    packed(run, tmp_path / "azure.jsonl", tmp_path / "azure", "--root", str(photos))
    assert counts_of(f"{tmp_path}/azure") == {"blue": 6, "red": 6}


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_hugging_faces_metadata(form: str, run: Run, photos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "hub" / split
        folder.mkdir(parents=True)
        rows = []
        for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
            if (number % 3 == 0) == (split == "test"):
                (folder / f"{number}.jpg").write_bytes(path.read_bytes())
                rows.append({"file_name": f"{number}.jpg", "label": path.parent.name})
        if form == "jsonl":
            (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        else:
            pandas.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    packed(run, tmp_path / "hub", tmp_path / "set")
    assert sum(counts_of(f"{tmp_path}/set/train").values()) == 8
    assert sum(counts_of(f"{tmp_path}/set/test").values()) == 4


def test_parquet_as_datasets_writes_it(run: Run, photos: Path, tmp_path: Path) -> None:
    names = ["sky", "fire"]  # not in alphabetical order
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    paths = sorted(photos.rglob("*.jpg"))
    for split, part in (("train", paths[::2]), ("validation", paths[1::2])):
        table = pyarrow.table(
            {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in part],
                "label": pyarrow.array(
                    [int(p.parent.name == "red") for p in part], pyarrow.int64()
                ),
            }
        )
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        name = folder / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(table, name, row_group_size=2)
    text = packed(run, tmp_path / "hub", tmp_path / "set")
    assert "Parquet with train, val of image bytes" in text
    for split in ("train", "val"):
        assert counts_of(f"{tmp_path}/set/{split}") == {"sky": 3, "fire": 3}
        assert open_index(f"{tmp_path}/set/{split}").classes == ("sky", "fire")


def test_parquet_of_paths(run: Run, photos: Path, tmp_path: Path) -> None:
    paths = sorted(photos.rglob("*.jpg"))
    frame = pandas.DataFrame(
        {
            "path": [str(path.relative_to(photos)) for path in paths],
            "target": [float(path.parent.name == "red") for path in paths],
        }
    )
    frame.to_parquet(tmp_path / "set.parquet")
    packed(run, tmp_path / "set.parquet", tmp_path / "out", "--root", str(photos))
    assert counts_of(f"{tmp_path}/out") == {"0": 6, "1": 6}


def test_tars_like_stock_webdataset(run: Run, tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 100)):
        (tmp_path / "tars" / split).mkdir(parents=True)
        for n in range(2):
            data = tar(labeled(6, first + 6 * n, lambda n: ("bee", "ant", "cat")[n % 3]))
            (tmp_path / "tars" / split / f"{n:05d}.tar").write_bytes(data)
    packed(run, tmp_path / "tars", tmp_path / "set")
    urls = [str(path) for path in sorted((tmp_path / "tars" / "train").glob("*.tar"))]
    theirs = Counter(s["cls"].decode() for s in webdataset.WebDataset(urls, shardshuffle=False))
    assert counts_of(f"{tmp_path}/set/train") == dict(sorted(theirs.items()))
    assert sum(counts_of(f"{tmp_path}/set/val").values()) == 12


def test_img2datasets_tars(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    members = []
    for key, data in labeled(4):
        stem, _, suffix = key.partition(".")
        if suffix == "jpg":
            fields = {
                "caption": "a bee",
                "label": "bee" if int(stem) % 2 else "ant",
                "status": "success",
            }
            members += [(f"{stem}.jpg", data), (f"{stem}.json", json.dumps(fields).encode())]
            members += [(f"{stem}.txt", b"a bee")]
    (tmp_path / "tars" / "00000.tar").write_bytes(tar(members))
    (tmp_path / "tars" / "00000.parquet").write_bytes(b"the same facts again")
    (tmp_path / "tars" / "00000_stats.json").write_text("{}")
    packed(run, tmp_path / "tars", tmp_path / "set")
    assert counts_of(f"{tmp_path}/set") == {"ant": 2, "bee": 2}


def test_a_function_of_the_users(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tars").mkdir()
    members = [(k.replace(".cls", ".txt"), d) for k, d in labeled(6)]
    (tmp_path / "tars" / "x.tar").write_bytes(tar(members))
    (tmp_path / "mine.py").write_text(
        "def fix(sample):\n"
        "    if sample['__key__'].endswith('5'): return None\n"
        "    label = sample.pop('txt').decode()\n"
        "    return {**sample, 'cls': 'even' if int(label) % 2 == 0 else 'odd'}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = run("pack", f"{tmp_path}/tars", f"{tmp_path}/set", "--map", "mine:fix")
    assert ended.code == 0, ended.err
    assert counts_of(f"{tmp_path}/set") == {"even": 3, "odd": 2}
    wrong = run("pack", f"{tmp_path}/tars", f"{tmp_path}/other", "--map", "mine:none")
    assert wrong.code == 78
    assert "--map mine:none: " in wrong.err


def test_a_packed_set_is_divided_anew(run: Run, dataset: Path, tmp_path: Path) -> None:
    before = counts_of(f"{dataset}/train")
    packed(run, dataset / "train", tmp_path / "set", "--val", "0.25", "--shard-size", "0.02")
    train, val = counts_of(f"{tmp_path}/set/train"), counts_of(f"{tmp_path}/set/val")
    assert {name: train[name] + val[name] for name in before} == before
    assert sum(val.values())


def test_pipes_are_opened_only_if_allowed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar(labeled(6)))
    address = f"pipe:cat {tmp_path}/x.tar"
    refused = run("pack", address, f"{tmp_path}/set")
    assert refused.code == 78
    assert "pass --allow-pipe" in refused.err
    packed(run, address, tmp_path / "set", "--allow-pipe")
    failing = run("pack", f"pipe:false {tmp_path}/x.tar", f"{tmp_path}/no", "--allow-pipe")
    assert failing.code == 69


@pytest.mark.parametrize(
    ("name", "text", "code", "complaint"),
    [
        ("t.csv", "a,b\n1,2\n", 78, "no column looks like images; pass --image with one of a, b"),
        ("t.csv", "image,b,c\nx.jpg,2,3\n", 78, "no column looks like labels; pass --label"),
        (
            "t.csv",
            "image,label\nx.jpg,a\nx.jpg,b\n",
            78,
            "row 2: x.jpg is labeled 'b', but 'a' in an earlier row",
        ),
        ("t.csv", "image,label\nx.jpg\n", 65, "line 2 has 1 cells, but the first line has 2"),
        ("t.csv", "image,image\nx.jpg,1\n", 78, "two columns are named 'image'"),
        (
            "t.csv",
            "image,label,split\ny.jpg,a,train\nx.jpg,a,hold\n",
            78,
            "the split 'hold' is none of train",
        ),
        ("t.jsonl", '{"image": "x.jpg"', 65, "line 1 is not JSON"),
        ("t.json", '{"a": 1}', 65, "is not a list of objects"),
        ("t.csv", "", 78, "has no rows"),
        ("t.parquet", "no parquet", 65, "cannot be read"),
    ],
)
def test_tables_that_cannot_be_read(
    name: str, text: str, code: int, complaint: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    ended = run("pack", f"{tmp_path}/{name}", f"{tmp_path}/set")
    assert ended.code == code, ended.err
    assert complaint in ended.err
    assert "Traceback" not in ended.err


def test_a_dry_run_says_everything_and_writes_nothing(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    (photos / "red" / "copy.jpg").write_bytes((photos / "red" / "000.jpg").read_bytes())
    (photos / "notes.txt").write_text("not an image")
    text = packed(run, photos, tmp_path / "set", "--dry-run", "--val", "0.3")
    for words in ("image folder", "train: ", "val: ", "red", "█", "exact duplicates: 1 image"):
        assert words in text
    assert "left out: 1 .txt file" in text
    assert not (tmp_path / "set").exists()


def test_the_record_beside_the_index(run: Run, photos: Path, tmp_path: Path) -> None:
    packed(run, photos, tmp_path / "set", "--val", "0.3", "--longest-side", "20")
    one, other = record_of(f"{tmp_path}/set/train"), record_of(f"{tmp_path}/set/val")
    assert one == other
    assert one.kind == "image folder"
    assert one.options["val"] == 0.3
    assert one.splits["train"].images + one.splits["val"].images == 12
    assert one.resized == 12


def read_pixels(uri: str) -> list[Any]:
    found = []
    for key, data in contents(open_store(uri)).items():
        if key.endswith(".tar"):
            import tarfile

            with tarfile.open(fileobj=io.BytesIO(data)) as file:
                for member in file:
                    if not member.name.endswith(".cls"):
                        body = file.extractfile(member)
                        assert body
                        found.append(Image.open(io.BytesIO(body.read())))
    return found


def test_large_images_are_scaled_down(run: Run, photos: Path, tmp_path: Path) -> None:
    text = packed(run, photos, tmp_path / "set", "--longest-side", "20", "--quality", "80")
    assert "scaled down: 12 images" in text
    assert {max(image.size) for image in read_pixels(f"{tmp_path}/set")} == {20}


def test_a_function_that_raises_makes_bad_images_and_no_traceback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "x.tar").write_bytes(tar(labeled(2)))
    (tmp_path / "broken.py").write_text("def fix(sample):\n    return sample['nothing']\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    ended = run("pack", f"{tmp_path}/tars", f"{tmp_path}/set", "--map", "broken:fix")
    assert ended.code == 65
    assert "--map raised KeyError: 'nothing'" in ended.err
    assert "Traceback" not in ended.err


def test_a_group_that_the_source_has_divided_is_refused(run: Run, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        write_pictures(tmp_path / "photos" / split, 2, seed=number)
    pack = ("pack", f"{tmp_path}/photos", f"{tmp_path}/set", "--group-by", "/(\\d+)")
    ended = run(*pack)
    assert ended.code == 65
    assert "the group '000' is in train and in val" in ended.err
    wrong = run(*pack[:-1], "(")
    assert wrong.code == 78
    assert "neither a column nor a regular expression" in wrong.err


def test_groups_are_written_and_kept_when_a_set_is_packed_again(run: Run, tmp_path: Path) -> None:
    """So that folds keep them together: the last digit of a name stands for a patient."""
    write_pictures(tmp_path / "photos", 20)
    once, again = f"{tmp_path}/once", f"{tmp_path}/again"
    assert run("pack", f"{tmp_path}/photos", once, "--group-by", "(\\d)$").code == 0
    assert run("pack", once, again).code == 0
    for uri in (once, again):
        table = read_table(parse_address(uri).store, open_index(uri))
        assert len(set(table["group"].tolist())) == 10
        assert len(set(table["key"].tolist())) == 40
    plain = f"{tmp_path}/plain"
    assert run("pack", f"{tmp_path}/photos", plain).code == 0
    table = read_table(parse_address(plain).store, open_index(plain))
    assert table["group"].tolist() == table["key"].tolist()


def test_a_place_inside_the_source_is_refused(run: Run, photos: Path) -> None:
    for dest in (photos, photos / "packed"):
        ended = run("pack", str(photos), str(dest))
        assert ended.code == 78
        assert "choose a place outside it" in ended.err


def test_an_option_that_means_nothing_for_the_source_is_refused(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(tar(labeled(6)))
    table = write_csv(tmp_path / "t.csv", [["image", "label"], ["photos/blue/0.jpg", "blue"]])
    for source, option, value in (
        (photos, "--image", "file"),
        (photos, "--map", "os.path:basename"),
        (tmp_path / "x.tar", "--root", "elsewhere"),
        (table, "--map", "os.path:basename"),
    ):
        ended = run("pack", str(source), f"{tmp_path}/set", option, value)
        assert ended.code == 78
        assert f"{option}: means nothing for this source" in ended.err
    assert not (tmp_path / "set").exists()


def test_paths_that_all_lead_nowhere_ask_for_a_root(run: Run, photos: Path, tmp_path: Path) -> None:
    files = [path for path in sorted(photos.rglob("*.*")) if path.is_file()]
    rows = [[str(path.relative_to(photos)), path.parent.name] for path in files]
    table = write_csv(tmp_path / "t.csv", [["image", "label"], *rows])
    ended = run("pack", str(table), f"{tmp_path}/set")
    assert ended.code == 65
    assert "none of the 12 images can be used" in ended.err
    assert "pass --root with the folder that the paths start from" in ended.err
    assert run("pack", str(table), f"{tmp_path}/set", "--root", str(photos)).code == 0


def test_a_command_is_never_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar(labeled(6)))
    address = f"pipe:cat {tmp_path}/x.tar # Bearer hunter2"
    ended = run("pack", address, f"{tmp_path}/set", "--allow-pipe")
    assert ended.code == 0, ended.err
    record = (tmp_path / "set" / "dataset.json").read_text()
    assert "hunter2" not in ended.err + ended.out + record


def test_deep_images_are_told_apart(run: Run, tmp_path: Path) -> None:
    """Of 16 bits, these use the lower 8 only: what an 8-bit image of them would show is black."""
    (tmp_path / "deep" / "a").mkdir(parents=True)
    for n in range(4):
        pixels = numpy.full((40, 40), 50 * n + 1, numpy.uint16)
        Image.fromarray(pixels).save(tmp_path / "deep" / "a" / f"{n}.png")
    text = packed(run, tmp_path / "deep", tmp_path / "set", "--longest-side", "20")
    assert "exact duplicates" not in text
    assert "scaled down" not in text
