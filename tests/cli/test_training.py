"""`worker plan` of the example in the README, and near names."""

import re
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torchvision.models import get_model as build_model

from tests.support.paths import ROOT
from tests.support.processes import Run, Write


def test_the_manifest_of_the_readme_draws_no_warning(
    run: Run, write: Write, job: dict[str, Any], tmp_path: Path
) -> None:
    text = (ROOT / "README.md").read_text()
    (manifest,) = re.findall(r"```yaml\n(version: 1\n.+?)```", text, re.DOTALL)
    own = YAML(typ="safe", pure=True).load(manifest)
    state = build_model("efficientnet_b0").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    own |= {"output": job["output"], "data": job["data"]}
    own["model"]["weights"] = f"{tmp_path}/weights.pth"
    own["train"]["batch_size"] = 13
    ended = run("plan", write(own))
    assert ended.code == 0, ended.err
    assert "warning" not in ended.out
    groups = [line.split()[0] for line in ended.out.splitlines() if line.startswith("features.")]
    assert {"features.1", "features.2+features.3"} <= set(groups)


def test_a_folder_is_no_manifest(run: Run, tmp_path: Path) -> None:
    ended = run("plan", str(tmp_path))
    assert ended.code == 78
    assert f"{tmp_path}: is a folder, not a file" in ended.err


def test_models_with_a_similar_name_are_suggested(
    run: Run, write: Write, job: dict[str, Any]
) -> None:
    job["model"]["backbone"] = "efficientnet_bo"
    assert "did you mean efficientnet_b0, efficientnet_b1 or" in run("plan", write(job)).err
    assert "did you mean efficientnet_b0?" in run("models", "efficentnet*").err
