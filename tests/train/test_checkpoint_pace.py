"""The pace of checkpoints: from the settings, or measured."""

import json

import pytest

from tests.support.processes import Job, Run, Write
from worker.checkpoint.interval import MIN_SECONDS
from worker.manifest import Checkpoint
from worker.store import open_store
from worker.train.checkpoint_pace import CheckpointPace, mean_time_between_failures


def test_blocked_time_and_slower_steps_are_counted() -> None:
    pace = CheckpointPace(Checkpoint(), None)
    assert pace.seconds == MIN_SECONDS  # to measure the first one
    for _ in range(20):
        pace.step(1.0, saving=False)
    pace.saved(2.0)
    for _ in range(4):
        pace.step(1.5, saving=True)
    assert pace.cost is None
    pace.step(1.0, saving=False)
    assert pace.cost == pytest.approx(4.0)  # 2 s blocked, and four steps that took 0.5 s more
    assert pace.seconds == pytest.approx(4.0 / 0.03)
    pace.saved(8.0)
    pace.step(1.0, saving=False)
    assert pace.cost == pytest.approx(6.0)
    often = CheckpointPace(Checkpoint(overhead=0.03), 400.0)
    often.saved(9.0)
    often.step(1.0, saving=False)
    assert often.seconds == pytest.approx((2 * 9 * 400) ** 0.5)


def test_an_interval_that_is_set_is_kept() -> None:
    assert CheckpointPace(Checkpoint(every_minutes=2), 10.0).seconds == 120
    assert CheckpointPace(Checkpoint(every_steps=5), 10.0).seconds is None


def test_the_pace_is_shown(run: Run, write: Write, job: Job) -> None:
    plan = run("plan", write(job))
    assert "saving     at the end of every epoch, as often as 3% of the time allows" in plan.out
    assert run("train", write(job)).code == 0
    store = open_store(job["output"])
    progress = [info.key for info in store.list("records/") if info.key.endswith("progress.json")]
    assert 0 < json.loads(store.get(progress[0]))["checkpoint_seconds"] <= MIN_SECONDS
    assert mean_time_between_failures(store, 2) is None
    job["train"]["epochs"] = 4
    assert run("train", "--until", "3", write(job)).code == 75
    assert mean_time_between_failures(store, 3) is None
    assert mean_time_between_failures(store, 1) is None
    job["checkpoint"] = {"overhead": 0.1, "every_steps": 3}
    assert "overhead chooses the interval; remove every_steps" in run("plan", write(job)).err
