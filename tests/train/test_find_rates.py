"""`worker find-rates`."""

import json

import pytest

from tests.support.processes import Job, Run, Write
from worker.store import open_store


def test_rates_are_found_and_drawn(run: Run, write: Write, job: Job) -> None:
    job["model"]["backbone"] = "mobilenet_v3_small"  # which learns something in 40 steps
    ended = run("find-rates", "--steps", "40", write(job))
    assert ended.code == 0, ended.err
    assert "suggestion: optimizer.lr: " in ended.out
    store = open_store(f"{job['output']}find-rates")
    sweep = json.loads(store.get("sweep.json"))
    assert sweep["rates"][0] == pytest.approx(1e-6)
    assert 1e-5 < sweep["suggestion"] < 1e-1
    assert store.get("chart.svg").startswith(b"<svg ")
    vain = run("find-rates", "--steps", "20", "--low", "1e-12", "--high", "1e-11", write(job))
    assert vain.code == 0
    assert "no suggestion: the loss does not clearly fall" in vain.out
    assert json.loads(store.get("sweep.json"))["suggestion"] is None
    assert run("train", write(job)).code == 0, "a sweep leaves nothing that a job trips over"
