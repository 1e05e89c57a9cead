"""`worker evaluate` judges a finished model, on any ranks to the last digit."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from tests.support.finished import finished_model
from tests.support.packs import pack_folder
from tests.support.paths import SHARED
from tests.support.pictures import write_pictures
from tests.support.processes import Run
from worker.model.classifier import load_classifier


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 noisy pictures in blue/, green/ and red/, and a set of them in set/."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for color, name in enumerate(("blue", "green", "red")):
        (folder / "raw" / name).mkdir(parents=True)
        for number in range(50):
            pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
            pixels[..., 2 - color] //= 2
            Image.fromarray(pixels).save(folder / "raw" / name / f"{number}.jpg", quality=95)
    pack_folder(folder / "raw", str(folder / "set"))
    return folder


def judgment(run: Run, model: str, dataset: Path, out: Path, *options: str) -> dict[str, Any]:
    ended = run("evaluate", model, str(dataset), "--out", str(out), *options)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads((out / "judgement.json").read_text())
    return found


def check_figures(found: dict[str, Any], model: str, raw: Path, classes: tuple[str, ...]) -> None:
    """Compare figures with scikit-learn's on the model's predictions of single images."""
    classifier = load_classifier(model)
    images = sorted(path for path in raw.rglob("*.*") if path.is_file())
    chances = np.array(
        [[dict(classifier.predict(i.read_bytes()))[c] for c in classes] for i in images]
    )
    true = np.array([classes.index(image.parent.name) for image in images])
    guess = chances.argmax(1)
    assert found["images"] == len(images)
    assert found["accuracy"]["value"] == pytest.approx(metrics.accuracy_score(true, guess))
    f1 = metrics.f1_score(true, guess, average="macro")
    assert found["macro_f1"]["value"] == pytest.approx(f1)
    assert found["log_loss"]["value"] == pytest.approx(metrics.log_loss(true, chances), abs=1e-4)
    for label, of_class in enumerate(found["classes"]):
        own = true == label
        area = metrics.roc_auc_score(own, chances[:, label])
        assert of_class["auroc"]["value"] == pytest.approx(area, abs=1e-3)
        average = metrics.average_precision_score(own, chances[:, label])
        assert of_class["average_precision"]["value"] == pytest.approx(average, abs=1e-3)


@pytest.mark.parametrize("count", [3, 10])
def test_the_figures_are_those_of_its_own_predictions(
    count: int, run: Run, photos: Path, tmp_path: Path
) -> None:
    classes: tuple[str, ...] = ("blue", "green", "red")
    raw, dataset = photos / "raw", photos / "set"
    if count == 10:  # the same images, with labels that say little
        classes = tuple(f"class-{n}" for n in range(10))
        raw, dataset = tmp_path / "raw", tmp_path / "set"
        for number, image in enumerate(sorted((photos / "raw").rglob("*.jpg"))):
            folder = raw / classes[number % 10]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder / f"{number}.jpg")
        pack_folder(raw, str(dataset))
    model = finished_model(tmp_path / "final", classes, temperature=6.0)
    found = judgment(run, model, dataset, tmp_path / "out")["judgment"]
    check_figures(found, model, raw, classes)
    page = (tmp_path / "out" / "judgement.html").read_text()
    assert "Most wrong" in page
    assert "Least sure" in page


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here")
def test_the_figures_on_photographs(run: Run, tmp_path: Path) -> None:
    with tarfile.open(SHARED / "data" / "hymenoptera.tar") as archive:
        archive.extractall(tmp_path / "photos", filter="data")
    raw = tmp_path / "photos" / "val"
    pack_folder(raw, str(tmp_path / "set"), shard_bytes=4 << 20)
    model = finished_model(tmp_path / "final", ("ants", "bees"), temperature=6.0, size=64)
    found = judgment(run, model, tmp_path / "set", tmp_path / "out")["judgment"]
    check_figures(found, model, raw, ("ants", "bees"))


def test_any_number_of_ranks_gives_the_same_to_the_last_digit(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    model = finished_model(tmp_path / "final", ("blue", "green", "red"))
    texts = []
    for ranks in ("1", "2", "3"):
        judgment(run, model, photos / "set", tmp_path / ranks, "--nproc", ranks)
        texts.append((tmp_path / ranks / "judgement.json").read_text())
        page = (tmp_path / ranks / "judgement.html").read_text()
        texts.append(re.sub(r"<footer>.*?</footer>", "", page))
    assert texts[0] == texts[2] == texts[4]
    assert texts[1] == texts[3] == texts[5]


def test_other_classes_are_said_and_counted(run: Run, photos: Path, tmp_path: Path) -> None:
    model = finished_model(tmp_path / "final", ("red", "purple", "blue"))
    ended = run("evaluate", model, str(photos / "set"), "--out", str(tmp_path / "out"))
    assert ended.code == 0, ended.err
    assert "classes that the model does not know: green" in ended.err
    found = json.loads((tmp_path / "out" / "judgement.json").read_text())
    assert found["left_out"] == {"green": 50}
    assert found["absent"] == ["purple"]
    assert found["judgment"]["images"] == 100
    assert [c["support"] for c in found["judgment"]["classes"]] == [50, 0, 50]


def test_a_set_without_any_class_of_the_model_is_refused(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    model = finished_model(tmp_path / "final", ("cat", "dog"))
    ended = run("evaluate", model, str(photos / "set"))
    assert ended.code == 78
    assert "none of the model's (cat, dog)" in ended.err


def test_a_bad_image_is_left_out_and_named(run: Run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "raw", 6)
    pack_folder(tmp_path / "raw", str(tmp_path / "set"), shard_bytes=1 << 20)
    (shard,) = (tmp_path / "set").glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[1600:1700] = bytes(100)
    shard.write_bytes(data)
    found = judgment(run, finished_model(tmp_path / "final"), tmp_path / "set", tmp_path / "out")
    assert found["judgment"]["images"] == 11
    (text,) = found["bad_samples"]
    assert "its bytes differ from the index" in text
