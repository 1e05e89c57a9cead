"""`worker status`."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Job, Run, Start, Write
from worker.layout import progress_name
from worker.report.status import read_status
from worker.store import Store, open_store


@pytest.fixture
def claimed(tmp_path: Path) -> Store:
    """A run of one attempt that has said nothing yet."""
    store = open_store(str(tmp_path / "claimed"))
    store.put("attempts/000001.json", json.dumps({"identity": {"job": "ants"}}).encode())
    return store


def say(store: Store, **fields: Any) -> None:
    store.put(progress_name(1), json.dumps({"time": time.time(), **fields}).encode())


def test_a_status_tells_what_a_run_said_last(claimed: Store) -> None:
    assert read_status(claimed).state == "running"
    before = time.time()
    say(claimed, step=5, total_steps=20, remaining_seconds=60.0)
    found = read_status(claimed)
    assert (found.state, found.step, found.total_steps) == ("running", 5, 20)
    assert found.expected_end
    assert before + 60 <= found.expected_end <= time.time() + 60
    for code, state in ((75, "stopped"), (76, "superseded"), (65, "failed (65)")):
        say(claimed, step=5, end={"code": code, "text": "why"})
        found = read_status(claimed)
        assert (found.state, found.text, found.expected_end) == (state, "why", None)


def test_a_run_that_says_nothing_is_silent(claimed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    say(claimed, step=5)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 300)
    assert read_status(claimed).state == "silent"


def test_status_of_a_run_from_start_to_end(
    run: Run, start: Start, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = run("status", job["output"])
    assert nothing.code == 78
    assert "holds no run" in nothing.err
    job["train"]["epochs"] = 30
    running = start("train", write(job))
    running.wait_for("epoch 2/30")
    watching = start("status", "--watch", job["output"])
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    stopped = json.loads(run("status", "--json", job["output"]).out)
    assert stopped["state"] == "stopped"
    assert stopped["step"] == stopped["committed"] >= 10
    job["train"]["epochs"] = 1 + stopped["step"] // 5
    assert run("train", write(job)).code == 0
    seen = watching.wait()
    assert seen.code == 0
    assert "done" in seen.out
    assert "attempt   2" in seen.out
