"""The model in `final/` is judged as anybody else would judge it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Job, Run, Start, Write
from worker.store import open_store


@pytest.fixture
def judged(job: Job, dataset: Path) -> Job:
    """A job that is done before it is good, and asks for everything."""
    job["data"]["test"] = f"{dataset}/train/"
    job["train"] |= {"epochs": 2, "metric": "macro_f1", "ema": 0.5}
    job["final"] = {"weights": "best", "calibrate": True, "thresholds": {"precision": 0.6}}
    return job


def final(job: Job, name: str) -> Any:
    return json.loads(open_store(job["output"]).get(f"final/{name}"))


def test_evaluate_gives_what_the_job_has_written(
    run: Run, write: Write, judged: Job, dataset: Path, tmp_path: Path
) -> None:
    ended = run("train", "--nproc", "2", write(judged))
    assert ended.code == 0, ended.err
    figures, card = final(judged, "judgement.json"), final(judged, "model.json")
    assert card["temperature"] == figures["temperature"] != 1
    assert card["thresholds"] == {one["name"]: one["probability"] for one in figures["thresholds"]}
    for split, folder in (("validation", "val"), ("test", "train")):
        out = tmp_path / split
        again = run("evaluate", judged["output"], f"{dataset}/{folder}", "--out", str(out))
        assert again.code == 0, again.err
        assert json.loads((out / "judgement.json").read_text())["judgment"] == figures[split]
    report = run("report", judged["output"], "--out", "-")
    assert "macro F1 of final/" in report.out
    assert "with calibrated probabilities" in report.out
    pictured = pictured_confidences((tmp_path / "validation" / "judgement.html").read_text())
    assert pictured
    assert pictured == pictured_confidences(report.out)
    assert "52 test images" in report.out
    assert "52 training, 14 validation and 52 test images" in report.out
    plan = run("plan", write(judged))
    assert re.search(r"^test +.*52 images", plan.out, re.MULTILINE)
    judged["data"]["test"] = f"{tmp_path}/nowhere/"
    check = run("check", write(judged))
    assert check.code == 78
    assert re.search(r"FAIL +data.test", check.out)


def pictured_confidences(page: str) -> list[str]:
    """The probabilities beside the first images to look at."""
    section = page.partition('<section class="pick">')[2].partition("</section>")[0]
    return re.findall(r"\d+(?:\.\d+)?%", section)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_auroc", "loss"])
def test_any_metric_chooses_the_best_and_stops_early(
    metric: str, run: Run, write: Write, job: Job
) -> None:
    job["train"] |= {"epochs": 30, "metric": metric, "early_stop": {"patience": 1}}
    job["final"] = {"weights": "best"}
    job["optimizer"]["lr"] = 0.3  # diverges soon
    job["train"]["non_finite"] = "skip"
    ended = run("train", write(job))
    assert ended.code == 0, ended.err
    values = [e["value"] for e in ended.events if e.get("event") == "evaluation"]
    assert len(values) < 30
    known = [value for value in values if value is not None]
    best = min(known) if metric == "loss" else max(known)
    state = json.loads(open_store(job["output"]).get("done.json"))
    assert state["best_score"] == pytest.approx(-best if metric == "loss" else best)
    assert f"{metric} has not improved for 1 epoch;" in ended.err


def test_another_metric_is_another_experiment(run: Run, write: Write, job: Job) -> None:
    job["train"]["epochs"] = 1
    assert run("train", write(job)).code == 0
    job["train"] |= {"epochs": 2, "metric": "loss"}
    ended = run("train", write(job))
    assert ended.code == 78
    assert "train.metric: loss here, but accuracy in the job that owns the output" in ended.err


def test_a_metric_needs_a_validation_set(run: Run, write: Write, job: Job) -> None:
    del job["data"]["val"]
    job["train"]["metric"] = "macro_f1"
    ended = run("plan", write(job))
    assert ended.code == 78
    assert "train.metric: is measured on the validation set; set data.val" in ended.err


def test_a_stop_before_the_final_evaluation_changes_nothing(
    run: Run, start: Start, write: Write, judged: Job, tmp_path: Path
) -> None:
    assert run("train", write(judged)).code == 0
    calm = {name: final(judged, name) for name in ("judgement.json", "model.json")}
    judged["output"] = f"{tmp_path}/stopped/"
    running = start("train", write(judged), sabotage=stop_before_finish)
    assert running.wait().code == 75
    assert run("train", write(judged)).code == 0
    assert final(judged, "judgement.json") == calm["judgement.json"]
    assert final(judged, "model.json")["sha256"] == calm["model.json"]["sha256"]


def stop_before_finish() -> None:
    """A stop is requested when training is over."""
    import os
    import signal

    from worker.train import final_evaluation

    real = getattr(final_evaluation, "_load_weights")

    def load(attempt: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(attempt)

    setattr(final_evaluation, "_load_weights", load)
