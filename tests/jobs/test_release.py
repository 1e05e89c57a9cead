"""Gradual release, early stopping and steps that are not finite, through whole jobs."""

import copy
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.jobs.test_train import final_weights, train, with_output
from tests.support.processes import Job, Run, Start, Write
from tests.support.stores import contents
from worker.checkpoint.commit import list_commits, read_commit
from worker.store import Store, open_store

RELEASE = 4  # of ten steps; then a block more each step


@pytest.fixture
def gradual(job: Job) -> Job:
    """A job with state of every kind: EMA, schedule, clipping, blocks released from step 4 on."""
    job["model"]["backbone"] = "resnet18"
    job["optimizer"] |= {
        "name": "adamw",
        "clip_norm": 1.0,
        "schedule": {"name": "cosine", "warmup": {"steps": 2}},
        "groups": [
            {"match": "head"},
            {
                "match": "backbone",
                "layer_decay": 0.7,
                "freeze": {"steps": RELEASE, "block_every": 1},
            },
        ],
    }
    job["train"] |= {"ema": 0.8, "label_smoothing": 0.1}
    return job


def final(output: str) -> dict[str, bytes]:
    """What must not differ by a byte: the model, and the last state with its optimizer."""
    store = open_store(output)
    found = {
        key.split("/")[-1]: data
        for key, data in contents(store).items()
        if key.startswith("checkpoints/00000010-")
    }
    assert set(found) == {
        "model.safetensors", "average.safetensors", "optimizer.safetensors", "state.json",
    }  # fmt: skip
    return {**found, "final": store.get("final/model.safetensors")}


@pytest.mark.e2e
@pytest.mark.parametrize("ranks", ["1", "2", "3"])
def test_interrupted_around_a_release_ends_with_the_same_bytes(
    ranks: str, run: Run, write: Write, gradual: Job, tmp_path: Any
) -> None:
    """Committed right before, at and right after the first release, and killed there."""
    assert run("train", "--nproc", ranks, write(gradual)).code == 0
    expected = final(gradual["output"])
    for stop_at in (RELEASE - 1, RELEASE, RELEASE + 1):
        saving = {"checkpoint": {"every_steps": stop_at, "keep": 99}}
        calm = copy.deepcopy(gradual) | saving | {"output": f"{tmp_path}/calm-{stop_at}/"}
        assert run("train", "--nproc", ranks, write(calm)).code == 0
        cut = copy.deepcopy(gradual) | saving | {"output": f"{tmp_path}/cut-{stop_at}/"}
        _copy_until(open_store(calm["output"]), open_store(cut["output"]), stop_at)
        ended = run("train", "--nproc", ranks, write(cut))
        assert ended.code == 0, ended.err
        assert f"resumes after step {stop_at}" in ended.err
        assert final(cut["output"]) == expected, stop_at


def _copy_until(source: Store, target: Store, step: int) -> None:
    """What the store held when a job was killed right after its commit of `step`."""
    for key, data in contents(source).items():
        kind, _, rest = key.partition("/")
        late = kind in ("commits", "checkpoints") and int(rest[:8]) > step
        if kind in ("attempts", "commits", "checkpoints") and not late:
            target.put(key, data)


@pytest.mark.e2e
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_stop_by_signal_around_the_release_is_exact(
    ranks: str, run: Run, start: Start, write: Write, gradual: Job, tmp_path: Any
) -> None:
    """SIGTERM as soon as a commit shortly before the release is seen in the store."""
    assert run("train", "--nproc", ranks, write(gradual)).code == 0
    expected = final(gradual["output"])
    for seen in (RELEASE - 2, RELEASE - 1, RELEASE):
        saving = {"checkpoint": {"every_steps": seen}}
        cut = copy.deepcopy(gradual) | saving | {"output": f"{tmp_path}/cut-{seen}/"}
        running = start("train", "--nproc", ranks, write(cut))
        commit = Path(cut["output"]) / f"commits/{seen:08d}-000001.json"
        while not commit.exists():
            time.sleep(0.005)
        running.send(signal.SIGTERM)
        ended = running.wait()
        assert ended.code == 75, ended.err
        newest = list_commits(open_store(cut["output"]))[0].step
        assert f"stopped on request after step {newest}, committed" in ended.err
        assert run("train", "--nproc", ranks, write(cut)).code == 0
        assert final(cut["output"]) == expected, seen


def test_released_blocks_have_their_rates_in_the_history(
    run: Run, write: Write, gradual: Job
) -> None:
    assert run("train", write(gradual)).code == 0
    store = open_store(gradual["output"])
    events = [
        json.loads(line)
        for key, data in contents(store).items()
        if "/history/" in key
        for line in data.splitlines()
    ]
    rates = {e["step"]: e["rates"] for e in events if e["event"] == "step"}
    for step, row in rates.items():
        released = [name for name, rate in row.items() if rate > 0]
        blocks = ["layer4", "layer3", "layer2", "layer1", "conv1+bn1"]
        assert released == ["head", *blocks[: max(0, step - RELEASE)]], step
    ratios = [row["layer4"] / row["head"] for row in rates.values() if row["layer4"]]
    assert ratios == [pytest.approx(0.7)] * 6


def test_early_stopping_ends_a_job_that_no_longer_improves(
    run: Run, write: Write, job: Job
) -> None:
    job["train"] |= {"epochs": 9, "early_stop": {"patience": 1, "min_delta": 1.0}}
    ended = run("train", write(job))
    assert ended.code == 0, ended.err
    assert "accuracy has not improved for 1 epoch; training ends early" in ended.err
    result = json.loads(open_store(job["output"]).get("done.json"))
    assert (result["step"], result["stale"]) == (10, 1)
    assert "nothing to do" in run("train", write(job)).err


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_loss_that_is_not_finite_fails_or_is_left_out(
    ranks: str, run: Run, write: Write, job: Job, tmp_path: Any
) -> None:
    job["optimizer"] |= {"name": "sgd", "lr": 1e30, "groups": [{"match": "*"}]}
    ended = run("train", "--nproc", ranks, write(job))
    assert ended.code == 78
    line = ended.events[-1]["message"]
    assert line.startswith("optimizer.lr: the loss is not finite in step "), line
    assert "train.non_finite: skip" in line
    job["train"]["non_finite"] = "skip"
    job["train"]["epochs"] = 9
    job["output"] = f"{tmp_path}/skip/"
    ended = run("train", "--nproc", ranks, write(job))
    assert ended.code == 78
    assert "20 steps in a row; lower the rates" in ended.events[-1]["message"]
    assert ended.err.count("the step is left out") == 19


def test_a_validation_loss_that_is_not_finite_is_not_done(
    run: Run, write: Write, job: Job, tmp_path: Any
) -> None:
    """BatchNorm over one image whose map is one pixel; the weights stay finite, the model does not."""
    job["train"] |= {"batch_size": 51, "epochs": 1}
    job["optimizer"] |= {"name": "sgd", "lr": 1e12, "groups": [{"match": "*"}]}
    ended = run("train", write(job))
    assert ended.code == 78, ended.err
    assert "not finite" in ended.err
    job["train"]["non_finite"] = "skip"
    job["output"] = f"{tmp_path}/skip/"
    run("train", write(job))
    for key, data in contents(open_store(job["output"])).items():
        if key.endswith((".json", ".jsonl")):
            assert b"NaN" not in data, key


def test_a_plan_is_there_for_machines_and_looks_again(run: Run, write: Write, gradual: Job) -> None:
    gradual["optimizer"]["groups"][0]["scale"] = 0.001
    ended = run("plan", "--json", write(gradual))
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    by_name = {group["name"]: group for group in plan["groups"]}
    assert by_name["layer4"]["release_step"] == RELEASE
    assert by_name["conv1+bn1"]["release_step"] == RELEASE + 4
    assert by_name["layer4"]["rate_now"] == 0
    assert by_name["layer3"]["rate_peak"] <= 1e-3 * 0.7**2
    assert len(by_name["head"]["rates"]) == len(plan["steps"]) == 10
    assert any("the head (head, 1e-06) has a lower rate than layer4" in w for w in plan["warnings"])
    text = run("plan", write(gradual)).out
    assert "warning: the head (head, 1e-06)" in text
    assert "until step 4 (epoch 0.8)" in text
    assert "·" in text


def test_a_pull_towards_the_start_goes_on_from_the_same_start(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    """Every attempt reads the weights again, as no checkpoint holds them."""
    first = train(run, write, with_output(job, f"{tmp_path}/first/", train__epochs=1))
    job["model"]["weights"] = f"{first.uri}final/model.safetensors"
    job["optimizer"]["groups"] = [
        {"match": "head"},
        {"match": "*", "lr": 1e-3, "weight_decay": 1.0, "towards": "start"},
    ]
    whole = train(run, write, with_output(job, f"{tmp_path}/whole/"))
    parts = with_output(job, f"{tmp_path}/parts/")
    assert run("train", "--until", "1", write(parts)).code == 75
    expected = final_weights(whole)
    moved, other = tmp_path / "moved.safetensors", tmp_path / "other.safetensors"
    moved.write_bytes(first.get("final/model.safetensors"))
    other.write_bytes(whole.get("final/model.safetensors"))
    parts["model"]["weights"] = str(other)
    ended = run("train", write(parts))
    assert ended.code == 78
    assert f"model.weights: {other} has changed since this job began" in ended.err
    parts["model"]["weights"] = str(moved)
    for key, found in final_weights(train(run, write, parts)).items():
        assert torch.equal(found, expected[key]), key
    free = copy.deepcopy(job)
    del free["optimizer"]["groups"][1]["towards"]
    loose = final_weights(train(run, write, with_output(free, f"{tmp_path}/loose/")))
    start = final_weights(first)

    def distance(weights: dict[str, torch.Tensor]) -> float:
        names = [n for n in start if n.endswith("weight") and "fc" not in n]
        return sum(float((weights[n] - start[n]).norm()) for n in names)

    assert distance(expected) < distance(loose)
    job["optimizer"]["groups"] = [{"match": "*", "towards": "start"}]
    assert "put the head in a group of its own" in run("plan", write(job)).err
    job["model"]["weights"] = "none"
    assert "there are no weights to pull towards" in run("plan", write(job)).err


@pytest.mark.parametrize("freeze", [{"epochs": 1}, {"steps": 3}])
def test_the_best_blend_with_the_weights_at_release_is_written(
    run: Run, write: Write, job: Job, tmp_path: Path, freeze: dict[str, int]
) -> None:
    job["optimizer"]["groups"] = [
        {"match": "head"},
        {"match": "*", "scale": 0.5, "freeze": freeze},
    ]
    job["train"]["epochs"] = 4
    job["checkpoint"] = {"keep": 1}
    job["final"] = {"blend": [0, 0.25, 1], "weights": "last"}
    store = train(run, write, with_output(job, f"{tmp_path}/whole/"))
    release = 5 if "epochs" in freeze else 3
    steps = [name.step for name in list_commits(store)]
    assert steps[0] == 20
    assert release in steps  # kept, although only one checkpoint is
    done = json.loads(store.get("done.json"))
    share = done["weights"]["blend"]
    assert share in (0, 0.25, 1)
    parts = [read_commit(store, name) for name in list_commits(store) if name.step in (release, 20)]
    last, start = (
        safetensors.torch.load(bytes(part["model.safetensors"])) for part in parts if part
    )
    found = final_weights(store)
    for key in ("fc.weight", "conv1.0.weight"):
        assert torch.allclose(found[key], share * last[key] + (1 - share) * start[key], atol=1e-7)
    judged = json.loads(store.get("final/judgement.json"))
    assert judged["blend"] == share
    assert judged["validation"]["accuracy"]["value"] == done["weights"]["accuracy"]
    assert "those of the step that released the backbone" in store.get("final/README.md").decode()
    source = {0: "the release", 0.25: "a blend: 25% of step 20", 1: "step 20"}[share]
    assert f"the model of {source}" in run("status", store.uri).out
    again = with_output(job, f"{tmp_path}/parts/")
    assert run("train", "--until", "3", write(again)).code == 75
    resumed = final_weights(train(run, write, again))
    assert all(torch.equal(resumed[key], found[key]) for key in found)
    job["optimizer"]["groups"] = [{"match": "*"}]
    assert "no group is released in the course of the job" in run("plan", write(job)).err


def test_the_head_is_trained_on_cached_features(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    """Whole epochs before the release; stopped within them, resumed, and on other ranks the same."""
    first = train(run, write, with_output(job, f"{tmp_path}/first/", train__epochs=1))
    job["model"]["weights"] = f"{first.uri}final/model.safetensors"
    job["optimizer"]["groups"] = [
        {"match": "head"},
        {"match": "*", "scale": 0.1, "freeze": {"epochs": 2}},
    ]
    job["data"]["augment"]["mixup"] = 0.2  # from the release on
    job["train"] |= {"epochs": 3, "cache_features": True}
    job["record"] = {"samples": True}
    ended = run("train", write(with_output(job, f"{tmp_path}/whole/")))
    assert ended.code == 0, ended.err
    assert "computing the features of 52 images" in ended.err
    whole = open_store(f"{tmp_path}/whole/")
    assert run("audit", whole.uri).out == (
        "epochs 1 to 3: 52 of 52 samples trained on, 0 lost, 0 repeated\n"
    )
    expected, start = final_weights(whole), final_weights(first)
    parts = with_output(job, f"{tmp_path}/parts/")
    for epochs in ("1", "2"):
        assert run("train", "--until", epochs, write(parts)).code == 75
    resumed = final_weights(train(run, write, parts))
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)
    assert not torch.equal(expected["conv1.0.weight"], start["conv1.0.weight"])  # released
    frozen = [
        final_weights(
            train(
                run,
                write,
                with_output(job, f"{tmp_path}/frozen-{ranks}/", train__epochs=2),
                *("--nproc", ranks),
            )
        )
        for ranks in ("1", "2")
    ]
    for found in frozen:
        assert torch.equal(found["conv1.0.weight"], start["conv1.0.weight"])
        assert torch.equal(found["conv1.1.running_mean"], start["conv1.1.running_mean"])
        assert torch.allclose(found["fc.weight"], frozen[0]["fc.weight"], atol=1e-5)
        assert not torch.equal(found["fc.weight"], start["fc.weight"])
    job["model"] = {"backbone": "googlenet"}
    assert "has a convolutional or an auxiliary head" in run("plan", write(job)).err
