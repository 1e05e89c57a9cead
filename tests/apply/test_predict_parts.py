"""`worker predict --out`: each image once, by any number of starters that come and go."""

import contextlib
import csv
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from tests.support.finished import finished_model
from tests.support.packs import pack_folder
from tests.support.pictures import write_pictures
from tests.support.processes import Run, Start
from tests.support.stores import contents
from tests.support.tars import tar
from worker.model.classifier import load_classifier
from worker.store import open_store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 pictures in raw/, and shards of about 25 of them in set/."""
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder / "raw", 300)
    pack_folder(folder / "raw", str(folder / "set"), shard_bytes=20_000)
    return folder


def read_parquet(part: Path) -> list[dict[str, Any]]:
    # Not with threads of its own: those have crashed in a process that forks others.
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(part, use_threads=False).to_pylist()
    return rows


def picture(photos: Path) -> bytes:
    return next((photos / "raw" / "red").iterdir()).read_bytes()


def lines(out: Path) -> list[dict[str, object]]:
    parts = sorted((out / "predictions").glob("*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


def first_class(line: dict[str, object]) -> str:
    classes = line["classes"]
    assert isinstance(classes, dict)
    return str(next(iter(classes)))


def predicted(run: Run, model: str, source: object, out: Path, *options: str) -> str:
    ended = run("predict", model, str(source), "--out", str(out), *options)
    assert ended.code == 0, ended.err
    return ended.err


def results(out: Path) -> dict[str, bytes]:
    return {key: data for key, data in contents(open_store(str(out))).items() if "plan" not in key}


def test_each_image_has_a_line_like_that_of_a_single_prediction(
    run: Run, model: str, photos: Path, tmp_path: Path
) -> None:
    predicted(run, model, photos / "set", tmp_path / "out", "--nproc", "2", "--all")
    found = {str(line["image"]): line["classes"] for line in lines(tmp_path / "out")}
    assert len(found) == 600
    classifier = load_classifier(model)
    for image in sorted((photos / "raw").rglob("*.*"))[:40]:
        if image.is_file():
            key = str(image.relative_to(photos / "raw")).rpartition(".")[0]
            assert found[key] == pytest.approx(
                dict(classifier.predict(image.read_bytes())), abs=1e-4
            )
    audit = run("audit", str(tmp_path / "out"))
    assert audit.code == 0, audit.err
    assert "each exactly once" in audit.out
    assert "600 images in" in audit.out
    status = run("status", str(tmp_path / "out"))
    assert "600 of 600" in status.out
    assert "done" in status.out


def test_starters_that_are_killed_at_random_end_like_a_calm_one(
    start: Start, run: Run, model: str, photos: Path, tmp_path: Path
) -> None:
    options = ("--embeddings", "--top", "1")
    predicted(run, model, photos / "set", tmp_path / "calm", *options)
    chance = random.Random(7)
    command = ("predict", model, str(photos / "set"), "--out", f"{tmp_path}/wild", *options)
    running = [start(*command, "--nproc", "2") for _ in range(2)]
    for round_ in range(8):
        time.sleep(chance.uniform(0.3, 1.5))
        victim = running[round_ % 2]
        number = chance.choice((signal.SIGKILL, signal.SIGTERM))
        if number == signal.SIGTERM:  # it must be past the start of Python, or ended
            with contextlib.suppress(AssertionError):
                victim.wait_until_it_handles(number)
        victim.send(number)
        code = victim.wait().code
        assert code in (-signal.SIGKILL, 75, 0), code
        running[round_ % 2] = start(*command)
    for last in running:
        assert last.wait().code == 0
    assert results(tmp_path / "wild") == results(tmp_path / "calm")
    assert run("audit", f"{tmp_path}/wild").code == 0


def test_loose_images_lists_and_tars_without_labels(
    run: Run, model: str, photos: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(photos / "raw" / "red", raw / "red")
    (raw / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    images = sorted(path for path in raw.rglob("*.*") if path.is_file())
    predicted(run, model, f"{raw}/", tmp_path / "loose")
    loose = lines(tmp_path / "loose")
    assert [line["image"] for line in loose] == [str(i.relative_to(raw)) for i in images]
    (bad,) = [line for line in loose if "error" in line]
    assert bad["image"] == "red/broken.jpg"
    assert "is not a JPEG, PNG or WebP image" in str(bad["error"])

    (tmp_path / "some.txt").write_text(
        "raw/red/broken.jpg\n" + "".join(f"{i}\n" for i in images[:3])
    )
    predicted(run, model, tmp_path / "some.txt", tmp_path / "listed")
    assert [line["image"] for line in lines(tmp_path / "listed")] == [
        "raw/red/broken.jpg",
        *map(str, images[:3]),
    ]

    tars = tmp_path / "tars"
    tars.mkdir()
    for n in range(2):
        members = {f"{i.stem}{n}{i.suffix}": i.read_bytes() for i in images[5 * n : 5 * n + 5]}
        (tars / f"{n}.tar").write_bytes(tar(list(members.items())))
    predicted(run, model, tars, tmp_path / "of-tars")
    assert len(lines(tmp_path / "of-tars")) == 10
    assert not list(tars.glob("*.npy"))
    assert run("audit", f"{tmp_path}/of-tars").code == 0


def test_other_formats_and_features(run: Run, model: str, photos: Path, tmp_path: Path) -> None:
    predicted(run, model, photos / "set", tmp_path / "plain", "--top", "1")
    expected = [(str(line["image"]), first_class(line)) for line in lines(tmp_path / "plain")]
    predicted(run, model, photos / "set", tmp_path / "csv", "--format", "csv", "--all")
    rows = [
        row
        for part in sorted((tmp_path / "csv" / "predictions").glob("*.csv"))
        for row in csv.DictReader(part.open(newline=""))
    ]
    assert [(row["image"], row["class"]) for row in rows] == expected
    assert float(rows[0]["blue"]) + float(rows[0]["red"]) == pytest.approx(1, abs=1e-5)
    options = ("--format", "parquet", "--embeddings")
    predicted(run, model, photos / "set", tmp_path / "parquet", *options)
    parts = sorted((tmp_path / "parquet" / "predictions").glob("*.parquet"))
    table = [row for part in parts for row in read_parquet(part)]
    assert [(row["image"], row["classes"][0]) for row in table] == expected
    features = [np.load(part) for part in sorted((tmp_path / "parquet/embeddings").glob("*.npy"))]
    assert [len(part) for part in features] == [len(read_parquet(part)) for part in parts]
    assert features[0].shape[1] == 1024
    for name in ("csv", "parquet"):
        assert run("audit", f"{tmp_path}/{name}").code == 0


def test_what_is_lost_or_altered_is_found(
    run: Run, model: str, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predicted(run, model, photos / "set", out)
    (first, second, *_) = sorted((out / "predictions").glob("*.jsonl"))
    kept = first.read_text()
    rows = kept.splitlines(keepends=True)
    for text, complaint in (
        ("".join(rows[1:]), "images, but"),
        ("".join([*rows[:-1], rows[0]]), "2 times"),
        (kept.replace("0.", "0.0", 1), "altered after the end"),
        ("{", "damaged"),
    ):
        first.write_text(text)
        ended = run("audit", str(out))
        assert ended.code == 65, complaint
        assert complaint in ended.err
    first.write_text(kept)
    second.unlink()
    ended = run("audit", str(out))
    assert ended.code == 65
    assert "missing" in ended.err


def test_another_prediction_is_not_mixed_in(
    run: Run, model: str, photos: Path, tmp_path: Path
) -> None:
    predicted(run, model, photos / "set", tmp_path / "out")
    before = contents(open_store(str(tmp_path / "out")))
    of_a_job = tmp_path / "job"
    open_store(str(of_a_job)).put("attempts/000001.json", b"{}")
    for command in (("predict", model, f"{photos}/set"), ("average", model, model)):
        ended = run(*command, "--out", str(of_a_job))
        assert ended.code == 78
        assert "holds a job (attempts/000001.json); use another --out" in ended.err
    other = finished_model(tmp_path / "other", temperature=2.0, backbone="resnet18")
    for arguments, field in (
        ((other, f"{photos}/set"), "model_sha256"),
        ((model, f"{photos}/raw/"), "source"),
        ((model, f"{photos}/set", "--top", "1"), "top"),
    ):
        ended = run("predict", *arguments, "--out", f"{tmp_path}/out")
        assert ended.code == 78
        assert f"holds another prediction ({field}" in ended.err
    after = contents(open_store(str(tmp_path / "out")))
    assert {key: after[key] for key in before} == before
    again = predicted(run, model, photos / "set", tmp_path / "out")
    assert "done: 600 images" in again


def test_what_is_predicted_is_what_the_first_starter_found(
    run: Run, start: Start, model: str, photos: Path, tmp_path: Path
) -> None:
    """Images that are added later belong to another prediction."""
    raw = tmp_path / "raw"
    shutil.copytree(photos / "raw" / "blue", raw)
    out = tmp_path / "out"
    running = start("predict", model, f"{raw}/", "--out", str(out))
    while not (out / "predictions" / "plan.json").exists():
        time.sleep(0.02)
    running.send(signal.SIGKILL)
    running.wait()
    (raw / "0-new.jpg").write_bytes(picture(photos))
    other = run("predict", model, f"{photos}/raw/", "--out", str(out))
    assert other.code == 78
    assert "holds another prediction (source" in other.err
    predicted(run, model, f"{raw}/", out)
    assert len(lines(out)) == 300
    assert "0-new.jpg" not in {line["image"] for line in lines(out)}
    assert run("audit", str(out)).code == 0


def test_tars_may_hold_what_is_no_image(run: Run, model: str, photos: Path, tmp_path: Path) -> None:
    image = picture(photos)
    tars = tmp_path / "tars"
    tars.mkdir()
    members = [
        ("README.txt", b"read me"),
        ("a.jpg", image),
        ("b.jpg", b"no image"),
        ("\udcff.jpg", image),
    ]
    (tars / "1.tar").write_bytes(tar(members))
    (tars / "2.tar").write_bytes(tar([]))
    (tars / "3.tar").write_bytes(tar([("a.jpg", image), ("c.jpg", image), ("a.jpg", image)]))
    predicted(run, model, tars, tmp_path / "all", "--embeddings")
    found = lines(tmp_path / "all")
    assert [line["image"] for line in found] == ["a", "b", "\\udcff", "a", "c", "a"]
    assert [line["image"] for line in found if "error" in line] == ["b"]
    predicted(run, model, tars / "3.tar", tmp_path / "one")
    assert len(lines(tmp_path / "one")) == 3
    assert run("audit", f"{tmp_path}/one").code == 0
    ended = run("predict", model, f"{tars}/1.tar", "--out", f"{tmp_path}/one")
    assert ended.code == 78
    ended = run("predict", model, f"{tars}/4.tar", "--out", f"{tmp_path}/four")
    assert ended.code == 78
    assert "4.tar: no such tar" in ended.err
    (tars / "2.tar").write_bytes(tar(members)[:700])
    ended = run("predict", model, str(tars), "--out", f"{tmp_path}/cut")
    assert ended.code == 65
    assert "2.tar: byte" in ended.err


def test_a_list_with_a_mistake_is_refused_before_anything_is_written(
    run: Run, model: str, tmp_path: Path
) -> None:
    for line, complaint in (
        ("gs://bucket/x.jpg", "line 2: gs:// is not supported"),
        ("s3://key:hunter2@bucket/x.jpg", "line 2: an s3:// address"),
    ):
        (tmp_path / "l.txt").write_text(f"x.jpg\n{line}\n")
        ended = run("predict", model, f"{tmp_path}/l.txt", "--out", f"{tmp_path}/out")
        assert ended.code == 78
        assert complaint in ended.err
        assert "hunter2" not in ended.err
        assert not (tmp_path / "out" / "predictions" / "plan.json").exists()
    (tmp_path / "l.txt").write_bytes(b"\xff\xfex")
    ended = run("predict", model, f"{tmp_path}/l.txt", "--out", f"{tmp_path}/out")
    assert ended.code == 78
    assert "is not UTF-8" in ended.err


def test_strange_names_and_missing_images_are_lines(
    run: Run, model: str, photos: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    image = picture(photos)
    for name in ("tab\there.jpg", "line\u2028break.jpg", "żółw.jpg"):
        (raw / name).write_bytes(image)
    predicted(run, model, f"{raw}/", tmp_path / "out", "--format", "csv")
    (part,) = (tmp_path / "out" / "predictions").glob("*.csv")
    names = [row["image"] for row in csv.DictReader(part.open(newline=""))]
    assert names == ["line\\u2028break.jpg", "tab\\there.jpg", "żółw.jpg"]
    (tmp_path / "l.txt").write_text("raw/żółw.jpg\nraw/gone.jpg\n")
    predicted(run, model, tmp_path / "l.txt", tmp_path / "listed")
    assert ["error" in line for line in lines(tmp_path / "listed")] == [False, True]


def test_a_prediction_that_is_no_number_is_an_error_of_its_line(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    broken = finished_model(tmp_path / "broken", not_finite=True)
    ended = run("predict", broken, str(photos / "set"), "--out", f"{tmp_path}/out")
    assert ended.code == 65
    assert "none of its images can be used" in ended.err
    assert {str(line.get("error")) for line in lines(tmp_path / "out")} == {
        "the prediction is not finite"
    }
    ended = run("evaluate", broken, str(photos / "set"))
    assert ended.code == 65
    assert "600 have predictions that are not finite" in ended.err


def test_options_of_whole_sets_need_an_output(run: Run, model: str, photos: Path) -> None:
    for option in (("--embeddings",), ("--format", "csv"), ("--nproc", "2")):
        ended = run("predict", model, f"{photos}/raw/", *option)
        assert ended.code == 2
        assert f"{option[0]} is for whole sets; give --out" in ended.err
