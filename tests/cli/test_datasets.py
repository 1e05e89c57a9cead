"""`worker pack` and `worker index`."""

import re
from pathlib import Path
from typing import Any

from tests.support.processes import Run, Write
from tests.support.stores import keys, open_index
from worker.store import open_store


def test_pack_and_plan(
    run: Run, write: Write, job: dict[str, Any], pictures: Path, bucket: str
) -> None:
    ended = run("pack", str(pictures), f"{bucket}/photos", "--shard-size", "0.012")
    assert ended.code == 0, ended.err
    assert f"{bucket}/photos/train/: 52 images of 2 classes in" in ended.out
    again = run("pack", str(pictures), f"{bucket}/photos")
    assert again.code == 78
    assert "already holds a data set" in again.err
    assert run("pack", str(pictures), f"{bucket}/photos", "--overwrite").code == 0

    job["data"]["train"], job["data"]["val"] = f"{bucket}/photos/train", f"{bucket}/photos/val"
    job["output"] = f"{bucket}/run"
    job["model"]["backbone"] = "efficientnet_b0"
    job["optimizer"]["groups"] = [
        {"match": "features.1", "scale": 0.05},
        {"match": ["features.2", "features.3"], "scale": 0.1},
        {"match": "head"},
        {"match": "features.0", "freeze": "always"},
        {"match": "*", "scale": 0.01},
    ]
    ended = run("plan", "--ranks", "2", write(job))
    assert ended.code == 0, ended.err
    lines = [re.sub(" +", " ", line) for line in ended.out.splitlines()]
    assert "steps 2 epochs of 5 = 10, 12 images each, 4 in the last step of an epoch" in lines
    assert "classes 2: blue, red" in lines
    assert "features.1 5e-05 5e-05 1e-05 1,448 0.04% no" in lines
    assert "features.0 0 0 1e-05 928 0.02% always" in lines
    assert "head 0.001 0.001 1e-05 2,562 0.06% no" in lines
    assert not [key for key in keys(open_store(bucket)) if key.startswith("run")]
    near = run("plan", write(job | {"output": "runs/here/"}))
    assert "runs/here/ is a folder on this machine, although the data are on S3" in near.out
    refused = run("plan", "--ranks", "5", write(job))
    assert refused.code == 78
    assert "12 is not a multiple of the 5 ranks; start 3, 4 or 6" in refused.err


def test_an_index_in_the_folder_of_a_split_is_pointed_at(
    run: Run, write: Write, job: dict[str, Any]
) -> None:
    job["data"]["train"] = job["data"]["train"].removesuffix("train/")
    ended = run("plan", write(job))
    assert ended.code == 78
    assert re.search(
        r"index.json: no such object, but there is a data set nearby; use \S+/train/", ended.err
    )


def test_classes_to_keep_may_be_given_one_at_a_time(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    for kept in (("red,blue",), ("red", "--keep-classes", "blue")):
        place = f"{tmp_path}/{len(kept)}"
        ended = run("pack", str(pictures), place, "--keep-classes", *kept)
        assert ended.code == 0, ended.err
        assert open_index(f"{place}/train").classes == ("blue", "red")
