"""`worker find-rates --groups` on photographs, and on the same ones inverted and full of noise."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.places.test_hymenoptera import WEIGHTS
from tests.support.packs import pack_folder
from tests.support.paths import SHARED
from tests.support.processes import Run, Write
from worker.store import open_store

SIDE = 112  # the noise has to be there at the size that the model sees

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here"),
]


def write_photos(folder: Path, *, noisy: bool) -> None:
    random = np.random.default_rng(0)
    with tarfile.open(SHARED / "data" / "hymenoptera.tar") as tar:
        for member in tar:
            if not member.name.startswith("train/") or not member.name.endswith(".jpg"):
                continue
            file = tar.extractfile(member)
            assert file
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            image.thumbnail((2 * SIDE, SIDE) if image.width > image.height else (SIDE, 2 * SIDE))
            pixels = np.asarray(image, np.float32)
            if noisy:
                noise = random.normal(0, 102, pixels.shape).astype(np.float32)
                pixels = 255 - pixels + noise
            path = folder / Path(member.name).relative_to("train").with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def job_for(folder: Path, name: str) -> dict[str, Any]:
    write_photos(folder / "photos" / name, noisy=name == "noisy")
    pack_folder(folder / "photos" / name, f"{folder}/sets/{name}", shard_bytes=1 << 24)
    return {
        "version": 1,
        "job": name,
        "output": f"{folder}/runs/{name}/",
        "data": {"train": f"{folder}/sets/{name}", "image_size": 96},
        "model": {"backbone": "efficientnet_b0", "weights": str(WEIGHTS)},
        "optimizer": {"lr": 1e-3, "groups": [{"match": "head"}, {"match": "*", "scale": 0.1}]},
        "train": {"epochs": 4, "batch_size": 32},
    }


def test_the_profile_tells_the_kind_of_picture(run: Run, write: Write, tmp_path: Path) -> None:
    signals = {}
    for name in ("natural", "noisy"):
        job = job_for(tmp_path, name)
        ended = run("find-rates", "--groups", "--batches", "7", write(job))
        assert ended.code == 0, ended.err
        store = open_store(f"{job['output']}find-rates")
        found = json.loads(store.get("groups.json"))
        signals[name] = [block["signal"] for block in found["blocks"]]
        assert store.get("groups.svg").startswith(b"<svg ")
        again = run("find-rates", "--groups", "--batches", "7", "--nproc", "2", write(job))
        assert again.code == 0, again.err
        assert again.out == ended.out  # to the last digit that is shown
    natural, noisy = (np.array(signals[name]) for name in ("natural", "noisy"))
    assert [len(natural), natural[-1]] == [10, pytest.approx(0, abs=0.01)]  # the head is trained
    # On natural photographs, features.1 and features.6 have the most signal.
    assert natural[6] > 0.2
    assert natural[1] > 0.1
    # Under noise, what is left lies in the first blocks, and fades by features.5.
    assert noisy[:4].mean() > 0.05
    assert noisy[5:].mean() < 0.03
    assert noisy[6] < natural[6] / 3
