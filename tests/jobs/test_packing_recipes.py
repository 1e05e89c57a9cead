"""The recipes of docs/packing.md work as written."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import boto3
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from tests.support.paths import ROOT
from tests.support.pictures import write_pictures
from tests.support.processes import Run
from tests.support.stores import contents, open_index
from tests.support.tars import labeled, tar
from worker.store import open_store

COMMANDS = re.findall(r"^\$ worker (.+)$", (ROOT / "docs/packing.md").read_text(), re.MULTILINE)


@pytest.fixture
def sources(tmp_path: Path, aws: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with everything that the recipes name."""
    write_pictures(tmp_path / "photos", 12)
    pictures = sorted((tmp_path / "photos").rglob("*.jpg"))
    for number, split in enumerate(("train", "valid")):
        write_pictures(tmp_path / "roboflow" / split, 2, seed=10 + number)
    for folder in ("imagefolder/train", "pascal/images", "kaggle/train", "hub/data", "tars"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "unlabeled").mkdir()
    rows = []
    for number, path in enumerate(pictures):
        name = f"{number:03d}"
        for folder in ("imagefolder/train", "pascal/images", "kaggle/train"):
            (tmp_path / folder / f"{name}.jpg").write_bytes(path.read_bytes())
        rows.append((name, path.parent.name, str(path.relative_to(tmp_path / "photos"))))
    frame = pandas.DataFrame(rows, columns=["id", "breed", "path"])
    frame[["id", "breed"]].to_csv(tmp_path / "kaggle/labels.csv", index=False)
    files = frame["id"] + ".jpg"
    pandas.DataFrame({"filename": files, "class": frame["breed"]}).to_csv(
        tmp_path / "pascal/annotations.csv", index=False
    )
    pandas.DataFrame({"file_name": files, "label": frame["breed"]}).to_csv(
        tmp_path / "imagefolder/train/metadata.csv", index=False
    )
    vertex = [
        {"imageGcsUri": f"gs://b/{path}", "classificationAnnotation": {"displayName": breed}}
        for _, breed, path in rows
    ]
    (tmp_path / "vertex.jsonl").write_text("\n".join(map(json.dumps, vertex)))
    table = pyarrow.table(
        {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in pictures],
            "label": [path.parent.name for path in pictures],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "hub/data/train-00000-of-00001.parquet")
    for n in range(2):
        (tmp_path / f"tars/x-{n:03d}.tar").write_bytes(tar(labeled(6, 6 * n)))
    unlabeled = [(key.replace(".cls", ".txt"), data) for key, data in labeled(6)]
    (tmp_path / "unlabeled/x.tar").write_bytes(tar(unlabeled))
    (tmp_path / "mine.py").write_text(
        "def fix(sample):\n    return {**sample, 'cls': sample.pop('txt')}\n"
    )
    for bucket in ("raw", "datasets"):
        boto3.client("s3").create_bucket(Bucket=bucket)
    for key, data in contents(open_store(str(tmp_path / "photos"))).items():
        open_store("s3://raw/photos").put(key, data)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_every_recipe_runs(sources: Path, run: Run) -> None:
    assert len(COMMANDS) > 15
    for line in COMMANDS:
        arguments = shlex.split(line)
        ended = run(*arguments)
        assert ended.code == 0, f"{line}: {ended.err}"
        if arguments[0] == "pack" and "--dry-run" not in arguments:
            dest = arguments[2].rstrip("/")
            found = [f"{dest}/{name}" for name in ("train", "val", "test", "")]
            samples = 0
            for uri in found:
                try:
                    samples += open_index(uri).samples
                except Exception:
                    continue
            assert samples, line
    assert "<img" in (sources / "packed.html").read_text()
