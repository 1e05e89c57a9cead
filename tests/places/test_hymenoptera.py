"""Real photographs and real ImageNet features, against a plain PyTorch loop."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.reference import run as run_reference
from tests.support.paths import SHARED
from tests.support.processes import Run, Start
from worker.store import open_store

WEIGHTS = SHARED / "weights" / "efficientnet_b0_from_lite0.safetensors"
# Two standard errors of an accuracy near 0.9 over 153 pictures.
NOISE = 0.05

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here"),
]


def test_graded_fine_tuning_reaches_what_a_plain_loop_does(
    run: Run, start: Start, bucket: str, tmp_path: Path, write: Callable[[dict[str, Any]], str]
) -> None:
    photos = tmp_path / "photos"
    with tarfile.open(
        fileobj=io.BytesIO((SHARED / "data" / "hymenoptera.tar").read_bytes())
    ) as tar:
        tar.extractall(photos, filter="data")
    assert run("pack", str(photos), f"{bucket}/ants-bees", "--shard-size", "4").code == 0
    output = open_store(f"{bucket}/runs/b0/")
    manifest = {
        "version": 1,
        "job": "ants-bees-b0",
        "output": output.uri,
        "data": {"train": f"{bucket}/ants-bees/train/", "val": f"{bucket}/ants-bees/val/"},
        "model": {"backbone": "efficientnet_b0", "weights": str(WEIGHTS)},
        "optimizer": {
            "name": "adam",
            "lr": 1e-3,
            "weight_decay": 1e-5,
            "groups": [
                {"match": "features.1", "scale": 0.05},
                {"match": ["features.2", "features.3"], "scale": 0.1},
                {"match": "head"},
                {"match": "*", "scale": 0.01},
            ],
        },
        "train": {"epochs": 6, "batch_size": 64, "seed": 0},
        "record": {"samples": True},
    }
    ended = start("train", "--nproc", "2", write(manifest)).wait(900)
    assert ended.code == 0, ended.err
    assert run("audit", output.uri).code == 0
    ours = json.loads(output.get("done.json"))["accuracy"]
    theirs = run_reference(str(photos), str(WEIGHTS), "graded", seed=0)[-1]
    print(f"\nvalidation accuracy after 6 epochs: worker {ours:.4f}, plain PyTorch {theirs:.4f}")
    assert ours >= theirs - NOISE
    assert ours >= 0.85
