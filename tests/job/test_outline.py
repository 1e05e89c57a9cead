"""What `worker plan` tells about rates."""

import copy
import json
from typing import Any

from tests.support.processes import Job, Run, Write


def _some_weights(run: Run, write: Write, job: Job, output: str) -> str:
    """The address of the model of a short job with the same backbone."""
    short = copy.deepcopy(job) | {"output": output}
    short["train"] = {"epochs": 1, "batch_size": 52}
    assert run("train", write(short)).code == 0
    return f"{output}final/model.safetensors"


def test_a_plan_tells_the_peak_and_what_never_comes(
    run: Run, write: Write, job: Job, tmp_path: Any
) -> None:
    job["train"] |= {"epochs": 1000}
    job["optimizer"] |= {
        "schedule": {"name": "cosine", "warmup": {"steps": 7}},
        "decay_norms_and_biases": False,
    }
    job["optimizer"]["groups"] = [{"match": "head"}, {"match": "*", "scale": 0.1}]
    plan = json.loads(run("plan", "--json", write(job)).out)
    assert plan["groups"][0]["rate_peak"] == 1e-3
    job["train"]["batch_size"] = 26
    job["model"]["weights"] = _some_weights(run, write, job, f"{tmp_path}/before/")
    plan = json.loads(run("plan", "--json", write(job)).out)
    assert plan["warnings"] == [], "the parts of a group without decay are no groups of their own"
    job["optimizer"]["schedule"]["warmup"] = {"epochs": 1000}
    warnings = json.loads(run("plan", "--json", write(job)).out)["warnings"]
    assert warnings == ["the warm-up takes up the entire run, so the full rates are never reached"]
    job["model"]["weights"] = "none"
    job["train"] |= {"batch_size": 51, "epochs": 1, "ema": 0.9999}
    job["optimizer"] |= {
        "groups": [{"match": "head", "freeze": {"steps": 1}}, {"match": "*", "scale": 0.1}]
    }
    job["optimizer"]["schedule"] = {"name": "constant"}
    warnings = json.loads(run("plan", "--json", write(job)).out)["warnings"]
    starts = ("model.weights: none", "the head is frozen", "train.ema: after 2")
    assert [w.startswith(start) for w, start in zip(warnings, starts, strict=True)] == [True] * 3
    whole = job | {"train": job["train"] | {"batch_size": 10_000}}
    warnings = json.loads(run("plan", "--json", write(whole)).out)["warnings"]
    assert any(w.startswith("train.batch_size: 10000 is more than the") for w in warnings)
    fast = job | {"optimizer": job["optimizer"] | {"lr": 10}}
    warnings = json.loads(run("plan", "--json", write(fast)).out)["warnings"]
    assert warnings[0].startswith("the rate of head rises to 10, and adam usually diverges above")
    wrong = run("find-rates", "--low", "1", write(job))
    assert wrong.code == 78
    assert "--low: 1 is not below --high, 0.1; set both" in wrong.err
