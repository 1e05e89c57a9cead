"""Jobs that are stopped lose nothing; the best weights are kept."""

import functools
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support import sabotage
from tests.support.processes import Job, Run, Start, Write
from tests.support.stores import unfinish
from worker.checkpoint.commit import list_commits, read_commit
from worker.metrics.run_labels import Owner
from worker.metrics.textfile import textfile
from worker.store import open_store


def steps_done(file: Path) -> int:
    """The steps that rank 0 had done when it ended, from its own metrics."""
    found = re.search(r"^worker_step\{.*\} (\S+)$", file.read_text(), re.MULTILINE)
    return int(float(found[1])) if found else 0


def check_stop(
    seconds: float, ranks: str, start: Start, write: Write, job: Job, folder: Path
) -> int:
    """SIGTERM after some seconds: 75 with every step committed, or 0; returns the code."""
    slow = functools.partial(sabotage.slow_steps, 0.1)
    running = start("train", "--nproc", ranks, write(job), sabotage=slow)
    running.wait_until_it_handles(signal.SIGTERM)
    time.sleep(seconds)
    running.send(signal.SIGTERM)
    ended = running.wait()
    assert ended.code in (0, 75), f"after {seconds} s: {ended.err}"
    store = open_store(job["output"])
    commits = list_commits(store)
    committed = commits[0].step if commits else 0
    file = textfile(str(folder), Owner("blue-red", store.uri))
    done = steps_done(file) if file.exists() else 0
    assert committed == done, f"after {seconds} s: {ended.err}"
    assert (ended.code == 0) == ("done.json" in [info.key for info in store.list()])
    return ended.code


@pytest.fixture
def stoppable(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few epochs, and the grace of a slow machine; returns where the metrics will be."""
    monkeypatch.setenv("WORKER_GRACE_SECONDS", "60")
    monkeypatch.setenv("WORKER_METRICS_TEXTFILE", str(tmp_path))
    job["checkpoint"] = {"every_steps": 3}
    job["train"]["epochs"] = 3
    return tmp_path


def check_stops(count: int, start: Start, write: Write, job: Job, folder: Path) -> None:
    seed = int(os.environ.get("TEST_SEED", time.time()))
    print(f"TEST_SEED={seed}")
    draw = random.Random(seed)
    codes = []
    for number in range(count):
        fresh = job | {"output": f"{folder}/run-{number}/"}
        seconds = draw.uniform(0, 4)
        codes.append(check_stop(seconds, str(1 + number % 2), start, write, fresh, folder))
        shutil.rmtree(fresh["output"], ignore_errors=True)
    assert 75 in codes


def test_a_stop_at_any_instant_loses_no_step(
    start: Start, write: Write, job: Job, stoppable: Path
) -> None:
    check_stops(3, start, write, job, stoppable)


@pytest.mark.e2e
def test_a_stop_at_forty_instants_loses_no_step(
    start: Start, write: Write, job: Job, stoppable: Path
) -> None:
    check_stops(40, start, write, job, stoppable)


def check_duel(start: Start, write: Write, job: Job, expected: bytes, delay: float) -> list[int]:
    """Two attempts at once; returns their exit codes."""
    job["checkpoint"] = {"every_steps": 1, "keep": 99}
    manifest = write(job)
    first = start("train", manifest)
    time.sleep(delay)
    second = start("train", manifest)
    codes = [running.wait().code for running in (first, second)]
    assert set(codes) <= {0, 76}
    assert 0 in codes
    store = open_store(job["output"])
    assert store.get("final/model.safetensors") == expected
    assert all(read_commit(store, name) for name in list_commits(store))
    folder = Path(job["output"]) / "commits"
    in_time = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    attempts = [int(path.stem.split("-")[1]) for path in in_time]
    assert attempts == sorted(attempts), "an older attempt has committed after a newer one"
    return codes


def check_duels(rounds: int, start: Start, run: Run, write: Write, job: Job, folder: Path) -> None:
    assert run("train", write(job)).code == 0
    expected = open_store(job["output"]).get("final/model.safetensors")
    draw = random.Random(0)
    for number in range(rounds):
        duel = job | {"output": f"{folder}/duel-{number}/"}
        check_duel(start, write, duel, expected, draw.choice([0, draw.uniform(0, 1.5)]))
        shutil.rmtree(duel["output"])


def test_two_attempts_at_once_do_no_harm(
    start: Start, run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    check_duels(3, start, run, write, job, tmp_path)


@pytest.mark.e2e
def test_two_attempts_at_once_do_no_harm_in_twenty_rounds(
    start: Start, run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    check_duels(20, start, run, write, job, tmp_path)


def test_a_grace_that_is_too_short_keeps_the_last_commit(
    start: Start, run: Run, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads take 8 s, as the first one shows; a stop has 2."""
    monkeypatch.setenv("WORKER_GRACE_SECONDS", "3")
    job["train"]["epochs"] = 40
    job["checkpoint"] = {"every_steps": 2}
    slow = functools.partial(sabotage.slow_uploads, 8.0)
    running = start("train", "--nproc", "2", write(job), sabotage=slow)
    commits = Path(job["output"]) / "commits"
    deadline = time.monotonic() + 120
    while not (commits.exists() and any(commits.glob("*.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send(signal.SIGTERM)
    ended = running.wait()
    assert ended.code == 75, ended.err
    newest = list_commits(open_store(job["output"]))[0].step
    assert f"so the one of step {newest} is kept and " in ended.err
    assert " steps are lost; start again" in ended.err


def test_a_segmentation_fault_is_named(run: Run, write: Write, job: Job) -> None:
    crash = functools.partial(sabotage.crash_in_a_step, 2)
    ended = run("train", "--nproc", "2", write(job), sabotage=crash)
    assert ended.code == 70, ended.err
    assert "rank 1 was killed by SIGSEGV, a crash in native code" in ended.err


def test_checkpoints_by_the_clock(run: Run, write: Write, job: Job) -> None:
    job["checkpoint"] = {"every_minutes": 0.005, "keep": 99}
    slow = functools.partial(sabotage.slow_steps, 0.2)
    assert run("train", "--nproc", "2", write(job), sabotage=slow).code == 0
    steps = {name.step for name in list_commits(open_store(job["output"]))}
    assert steps > {5, 10}


def test_the_best_weights_are_kept_and_written(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    """Of three epochs the first is the best one; its weights are those of a job of one epoch."""
    job["final"] = {"weights": "best"}
    short = job | {"output": f"{tmp_path}/short/", "train": {**job["train"], "epochs": 1}}
    assert run("train", write(short)).code == 0
    job["checkpoint"] = {"keep": 1}
    job["train"]["epochs"] = 3
    assert run("train", write(job), sabotage=sabotage.worse_and_worse).code == 0
    store = open_store(job["output"])
    assert sorted(name.step for name in list_commits(store)) == [5, 15]
    expected = open_store(short["output"]).get("final/model.safetensors")
    assert store.get("final/model.safetensors") == expected
    card = json.loads(store.get("final/model.json"))
    assert card["metrics"]["weights"]["step"] == 5


def test_a_stop_at_the_end_of_an_epoch_keeps_to_its_budget(
    start: Start, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch's own save waits for one that takes longer than the grace."""
    monkeypatch.setenv("WORKER_GRACE_SECONDS", "3")
    job["checkpoint"] = {"every_steps": 3}
    slow = functools.partial(sabotage.slow_uploads, 90.0)
    running = start("train", write(job), sabotage=slow)
    running.wait_for("epoch 1/2")
    asked = time.monotonic()
    running.send(signal.SIGTERM)
    ended = running.wait()
    assert ended.code == 75, ended.err
    assert time.monotonic() - asked < 45  # a slow machine, but not one that waits for the upload
    assert "so the one of step 0 is kept and 5 steps are lost" in ended.err


@pytest.mark.e2e
def test_an_upload_may_take_longer_than_a_stall(
    run: Run, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_STALL_SECONDS", "8")
    slow = functools.partial(sabotage.slow_uploads, 12.0)
    ended = run("train", "--nproc", "2", write(job), sabotage=slow)
    assert ended.code == 0, ended.err


def test_an_average_that_comes_later_does_not_hide_the_best_weights(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    job["final"] = {"weights": "best"}
    short = job | {"output": f"{tmp_path}/short/", "train": {**job["train"], "epochs": 1}}
    assert run("train", write(short)).code == 0
    assert run("train", write(job), sabotage=sabotage.worse_and_worse).code == 0
    store = open_store(job["output"])
    unfinish(store)
    store.delete("final/model.safetensors")
    job["train"] |= {"epochs": 3, "ema": 0.9}
    ended = run("train", write(job), sabotage=sabotage.worse_and_worse)
    assert ended.code == 0, ended.err
    # Its evaluation counts as 1.0 again, and of equals the first one stays.
    assert "the model of step 5, validation accuracy" in ended.err
    expected = open_store(short["output"]).get("final/model.safetensors")
    assert store.get("final/model.safetensors") == expected


def test_no_checkpoint_is_taken_twice(run: Run, write: Write, job: Job) -> None:
    job["checkpoint"] = {"every_steps": 5, "keep": 99}
    assert run("train", write(job)).code == 0
    assert [name.step for name in list_commits(open_store(job["output"]))] == [10, 5]


def test_an_epoch_that_cannot_be_evaluated_is_committed(run: Run, write: Write, job: Job) -> None:
    ended = run("train", "--nproc", "2", write(job), sabotage=sabotage.unreadable_validation)
    assert ended.code == 69
    assert "the store of the pictures is down" in ended.err
    assert [name.step for name in list_commits(open_store(job["output"]))] == [5]
    ended = run("train", "--nproc", "2", write(job))
    assert ended.code == 0
    assert "resumes after step 5 " in ended.err
    assert "epoch 1/2  validation accuracy" in ended.err


def test_another_experiment_that_was_quicker_is_noticed(run: Run, write: Write, job: Job) -> None:
    ended = run("train", write(job), sabotage=sabotage.another_experiment_first)
    assert ended.code == 78, ended.err
    assert "train.seed: 0 here, but 77 in the job that owns the output" in ended.err
    assert not list_commits(open_store(job["output"]))
