"""`worker average`: the mean of finished models is a finished model."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.jobs.test_train import final_weights, train, with_output
from tests.support.finished import finished_model
from tests.support.processes import Job, Run, Write
from worker.model.backbone import build_backbone
from worker.model.weight_means import estimating_statistics, weighted_mean
from worker.store import open_store


def test_the_mean_of_one_model_and_itself_is_the_model() -> None:
    state = {"w": torch.tensor([1.1, -0.3]), "n": torch.tensor(7)}
    mean = weighted_mean([state, state, state], [1 / 3] * 3)
    assert torch.equal(mean["w"], state["w"])
    assert mean["n"] == 7
    other = {"w": torch.tensor([2.1, 0.7]), "n": torch.tensor(8)}
    assert torch.allclose(
        weighted_mean([state, other], [0.25, 0.75])["w"], torch.tensor([1.85, 0.45])
    )


def test_statistics_are_those_of_all_images() -> None:
    model = build_backbone("resnet18", 2, 0, 32).model
    images = torch.randn(12, 3, 32, 32) * 3 + 1
    with estimating_statistics(model) as add:
        for part in images.split((7, 3, 2)):
            add(part)
    first = model.get_submodule("conv1")(images)
    running = model.get_submodule("bn1").running_mean
    assert isinstance(running, torch.Tensor)
    assert torch.allclose(running, first.mean((0, 2, 3)), atol=1e-4)
    assert model.get_submodule("bn1").momentum == 0.1
    assert not model.training


def test_runs_are_averaged_and_the_mean_is_evaluated(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    strangers = [
        train(run, write, with_output(job, f"{tmp_path}/stranger-{seed}/", train__seed=seed))
        for seed in (0, 1)
    ]
    ended = run("average", *(store.uri for store in strangers), "--out", f"{tmp_path}/none/")
    assert ended.code == 78
    assert "began with different weights, so their mean is useless" in ended.err
    job["model"]["weights"] = f"{strangers[0].uri}final/model.safetensors"
    runs = [
        train(run, write, with_output(job, f"{tmp_path}/run-{seed}/", train__seed=seed))
        for seed in (0, 1)
    ]
    ended = run("average", runs[0].uri, runs[0].uri.rstrip("/"), "--out", f"{tmp_path}/none/")
    assert ended.code == 78
    assert "is listed twice" in ended.err
    out = f"{tmp_path}/mean/"
    ended = run("average", *(store.uri for store in runs), "--out", out)
    assert ended.code == 0, ended.err
    assert f"mean of 2 runs: {out}final/" in ended.out
    states = [final_weights(store) for store in (*runs, open_store(out))]
    key = next(key for key in states[0] if key.endswith("fc.weight"))
    assert torch.allclose(states[2][key], (states[0][key] + states[1][key]) / 2)
    card = json.loads(open_store(out).get("final/model.json"))
    assert card["metrics"]["averaged"] == [f"{store.uri}final/" for store in runs]
    judged = run("evaluate", out, job["data"]["val"])
    assert judged.code == 0, judged.err
    again = run("average", *(store.uri for store in runs), "--out", out)
    assert again.code == 78
    assert "already holds a model" in again.err


def test_models_of_different_kinds_are_refused(run: Run, tmp_path: Path) -> None:
    one = finished_model(tmp_path / "one")
    other = finished_model(tmp_path / "other", ("blue", "green"))
    ended = run("average", one, other, "--out", f"{tmp_path}/out")
    assert ended.code == 78
    assert "has other classes than" in ended.err
    assert run("average", one, "--out", f"{tmp_path}/out").code == 2
    again = finished_model(tmp_path / "again")
    ended = run("average", one, again, "--out", f"{tmp_path}/out")
    assert ended.code == 78
    assert "give the training set" in ended.err


@pytest.mark.parametrize("name", ["vit_b_32"])
def test_a_model_without_batch_norm_needs_no_images(run: Run, tmp_path: Path, name: str) -> None:
    paths = [finished_model(tmp_path / str(n), backbone=name, size=32) for n in range(2)]
    assert run("average", *paths, "--out", f"{tmp_path}/out").code == 0
    states = [
        safetensors.torch.load((Path(p) / "model.safetensors").read_bytes())
        for p in (*paths, f"{tmp_path}/out/final")
    ]
    for key, value in states[2].items():
        assert torch.allclose(value, (states[0][key] + states[1][key]) / 2)
