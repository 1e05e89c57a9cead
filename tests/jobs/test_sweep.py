"""`worker sweep`: workers that come and go share the trials, and the outcome is that of one."""

import functools
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Ended, Job, Run, Running, Start, Write
from tests.support.sabotage import slow_steps
from tests.support.stores import keys
from worker.checkpoint.commit import list_commits, read_commit
from worker.store import Store, open_store

TAKEOVER = 4


@pytest.fixture(autouse=True)
def quick_takeover(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_TAKEOVER_SECONDS", str(TAKEOVER))
    monkeypatch.setenv("WORKER_LOADER_THREADS", "0")
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "20")


@pytest.fixture
def sweep(job: Job, write: Write, tmp_path: Path) -> dict[str, Any]:
    """Two trials of two runs each, over two rungs."""
    del job["data"]["val"]
    job["data"]["fold"] = {"of": 3, "hold": 0}
    job["optimizer"]["groups"] = [
        {"name": "head", "match": "head"},
        {"name": "backbone", "match": "*", "scale": 0.1},
    ]
    return {
        "version": 1,
        "sweep": "rates",
        "output": f"{tmp_path}/sweep/",
        "base": write(job),
        "vary": {
            "optimizer.lr": {"log": [1e-4, 1e-2]},
            "optimizer.groups.backbone.scale": {"linear": [0.1, 1.0]},
            "data.fold.hold": {"each": [0, 1]},
        },
        "trials": 2,
        "halving": {"first": {"epochs": 1}},
        "goal": {"max": "accuracy"},
    }


def put(sweep: dict[str, Any], tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / f"sweep-{len(list(tmp_path.glob('sweep-*.yaml')))}.yaml"
    path.write_text(json.dumps({**sweep, **changes}))
    return str(path)


def outcome(store: Store) -> dict[str, bytes]:
    """What must not depend on who ran what: results, the best, and the last weights of each job."""
    found = {key: store.get(key) for key in keys(store) if key.startswith(("results/", "best."))}
    for trial in {key.split("/")[1] for key in keys(store, "trials/")}:
        job = open_store(f"{store.uri}trials/{trial}")
        newest = list_commits(job)[0]
        parts = read_commit(job, newest)
        assert parts
        found[f"{trial} at step {newest.step}"] = bytes(parts["model.safetensors"])
        if "final/model.safetensors" in keys(job, "final/"):
            found[f"{trial}, final"] = job.get("final/model.safetensors")
    return found


def test_a_sweep_from_dry_run_to_report(
    run: Run, write: Write, sweep: dict[str, Any], job: Job, tmp_path: Path
) -> None:
    manifest = put(sweep, tmp_path)
    dry = run("sweep", manifest, "--dry-run")
    assert dry.code == 0, dry.err
    assert (
        "2 trials of 2 runs each up to epoch 1\n1 trial of 2 runs each up to epoch 2\n" in dry.out
    )
    store = open_store(sweep["output"])
    assert not keys(store)
    ended = run("sweep", manifest)
    assert ended.code == 0, ended.err
    assert "the sweep is done: trial " in ended.err
    best = json.loads(store.get("best.json"))
    assert len(keys(store, "results/")) == 6
    finished = [key for key in keys(store) if key.endswith("/done.json")]
    assert len(finished) == 2  # the runs of the survivor; the others stopped after an epoch
    assert f"{best['outputs'][0]}done.json" in finished
    assert best["figure"]["low"] < best["figure"]["value"] <= best["figure"]["high"]

    status = run("status", sweep["output"])
    assert "state     done" in status.out
    assert f"trial {best['trial']} is best" in status.out
    assert status.out.count("given up") == 1
    shown = json.loads(run("status", sweep["output"], "--json").out)
    assert shown["trials"][0]["settings"] == best["settings"]
    report = run("report", sweep["output"], "--out", f"{tmp_path}/page.html")
    assert report.code == 0, report.err
    page = (tmp_path / "page.html").read_text()
    assert "Effect of each setting" in page
    assert len(list((tmp_path / "page-runs").glob("*.html"))) == 4
    for name in ("00000-000", "00001-001"):
        assert f'href="page-runs/{name}.html"' in page
    assert run("sweep", manifest).code == 0  # once more: nothing to do
    before = outcome(store)
    # Trained without halving, a survivor would have the same weights: no step was thrown away.
    alone = run("sweep", put(sweep, tmp_path, output=f"{tmp_path}/alone/", halving=None))
    assert alone.code == 0, alone.err
    whole = outcome(open_store(f"{tmp_path}/alone"))
    for key in finished:
        weights = f"{key.split('/')[1]}, final"
        assert whole[weights] == before[weights]
    other = run("sweep", put(sweep, tmp_path, trials=3))
    assert other.code == 78
    assert "holds another sweep (sweep: trials was 2 and is now 3)" in other.err
    dry = run("sweep", put(sweep, tmp_path, trials=3), "--dry-run")
    assert dry.code == 78
    assert "trials was 2 and is now 3" in dry.err
    for asked in (("audit",), ("compare", f"{sweep['output']}trials/00000-000/")):
        ended = run(*asked, sweep["output"])
        assert ended.code == 78
        assert "it is the output of a sweep: pass that of one of its jobs" in ended.err
    judged = run("evaluate", sweep["output"], job["data"]["train"])
    assert "it is the output of a sweep: pass that of one of its jobs" in judged.err
    job["output"] = sweep["output"]
    trained = run("train", write(job))
    assert trained.code == 78
    assert "output: " in trained.err
    assert "holds a sweep (sweep.json); set a different output" in trained.err


def test_an_output_that_holds_something_else_is_left_alone(
    run: Run, write: Write, sweep: dict[str, Any], job: Job, dataset: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    (photos / "red").mkdir(parents=True)
    (photos / "red" / "a.jpg").write_bytes(b"")
    for more in ((), ("--dry-run",)):
        ended = run("sweep", put(sweep, tmp_path, output=str(photos)), *more)
        assert ended.code == 78
        assert "already holds red/a.jpg, which is not of this sweep" in ended.err
    assert [path.name for path in photos.rglob("*")] == ["red", "a.jpg"]
    job["output"] = f"{dataset}/train"
    ended = run("plan", write(job))
    assert ended.code == 78
    assert "holds a data set (index.json); set a different output" in ended.err
    # The manifests of a sweep may be where its output will be.
    home = tmp_path / "home"
    home.mkdir()
    (home / "sweep.yaml").write_text(json.dumps({**sweep, "output": str(home)}))
    assert run("sweep", f"{home}/sweep.yaml", "--dry-run").code == 0


def test_manifests_of_the_other_kind_are_told(
    run: Run, write: Write, sweep: dict[str, Any], job: Job, tmp_path: Path
) -> None:
    ended = run("train", put(sweep, tmp_path))
    assert ended.code == 78
    assert "is that of a sweep; use `worker sweep`" in ended.err
    ended = run("sweep", write(job))
    assert ended.code == 78
    assert "is the manifest of a job; use `worker train`" in ended.err
    ended = run("sweep", put(sweep, tmp_path, base=f"{tmp_path}/none.yaml"))
    assert ended.code == 78
    assert "base: manifest file://" in ended.err
    ended = run("sweep", put(sweep, tmp_path, halving={"first": {"epochs": 2}}))
    assert ended.code == 78
    assert "halving.first.epochs: 2, but a trial has only 2 epochs" in ended.err
    for bounds, told in (
        ([1e-4, 1e-3, 1e-2], "vary.optimizer.lr.log: must have at most 2 items, not 3"),
        (["a", "b"], "vary.optimizer.lr.log[0]: should be a valid number, not 'a'"),
    ):
        varied = {"optimizer.lr": {"log": bounds}}
        ended = run("sweep", put(sweep, tmp_path, vary=varied))
        assert told in ended.err, ended.err
        assert "integer" not in ended.err


@pytest.mark.parametrize(
    ("path", "values", "complaint"),
    [
        ("optimizer.groups.tail.scale", {"each": [1]}, "has no group named 'tail'"),
        ("optimizer.weight_decay", {"each": [0, -1]}, "should be greater than or equal to 0"),
        ("optimizer.groups.backbone.match", {"each": ["*", "stage9"]}, "'stage9' matches no"),
        ("train.batch_size", {"each": [12, 7]}, "7 is not a multiple of the 2 ranks"),
        ("train.class_weights", {"each": ["balanced", {"no": 2.0}]}, "no class 'no'"),
        ("train.sync_batch_norm", {"each": [False, True]}, "sync_batch_norm: needs GPUs"),
        ("model.weights", {"each": ["none", "/no/such.pt"]}, "model.weights: "),
        ("model.dropout", {"each": [None, 0.5]}, "has no dropout layers"),
    ],
)
def test_bad_values_are_found_before_any_trial(
    run: Run, sweep: dict[str, Any], tmp_path: Path, path: str, values: Any, complaint: str
) -> None:
    sweep["vary"][path] = values
    ended = run("sweep", put(sweep, tmp_path), "--nproc", "2")
    assert ended.code == 78
    assert complaint in ended.err
    assert not keys(open_store(sweep["output"]))


def test_a_trial_that_fails_is_given_up(run: Run, sweep: dict[str, Any], tmp_path: Path) -> None:
    sweep["vary"] = {"optimizer.lr": {"each": [1e-3, 1e30]}}
    del sweep["trials"]
    ended = run("sweep", put(sweep, tmp_path))
    assert ended.code == 0, ended.err
    assert "trial 1 has failed with exit code 78" in ended.err
    assert "failed (78)" in run("status", sweep["output"]).out
    sweep["vary"] = {"optimizer.lr": {"each": [1e29, 1e30]}}
    ended = run("sweep", put(sweep, tmp_path, output=f"{tmp_path}/none/"))
    assert ended.code == 78
    assert "none of 2 trials has a figure to compare" in ended.err
    assert "state     failed" in run("status", f"{tmp_path}/none/").out


def test_a_failure_of_the_place_is_not_one_of_the_trial(
    run: Run, sweep: dict[str, Any], job: Job, write: Write, tmp_path: Path
) -> None:
    """Data beyond the error budget: once it is repaired, the sweep goes through."""
    del sweep["vary"]["data.fold.hold"]
    copy = tmp_path / "copy"
    shutil.copytree(job["data"]["train"], copy)
    job["data"]["train"] = str(copy)
    sweep["base"] = write(job)
    shards = {path: path.read_bytes() for path in copy.glob("*.tar")}
    for path, data in shards.items():
        path.write_bytes(data[:600] + b"x" * 600 + data[1200:])
    ended = run("sweep", put(sweep, tmp_path))
    assert ended.code == 65, ended.err
    store = open_store(sweep["output"])
    assert not keys(store, "results/")
    assert not keys(store, "claims/")
    for path, data in shards.items():
        path.write_bytes(data)
    assert run("sweep", put(sweep, tmp_path)).code == 0


def test_a_stop_keeps_what_was_done(
    run: Run, start: Start, sweep: dict[str, Any], tmp_path: Path
) -> None:
    del sweep["vary"]["data.fold.hold"]
    manifest, store = put(sweep, tmp_path), open_store(sweep["output"])
    slow = functools.partial(slow_steps, 0.5)  # the sweep must not end before the signal
    process = start("sweep", manifest, sabotage=slow)
    wait_for(store, "results/", 1, process)
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert ended.code == 75, ended.err
    assert not keys(store, "claims/")  # others need not wait
    assert run("sweep", manifest).code == 0


def wait_for(store: Store, prefix: str, count: int, process: Running) -> None:
    deadline = time.monotonic() + 120
    while len(keys(store, prefix)) < count:
        assert time.monotonic() < deadline, process.wait().err
        time.sleep(0.05)


@pytest.mark.e2e
def test_four_workers_killed_twenty_times_end_as_one_calm_worker(
    run: Run, start: Start, sweep: dict[str, Any], job: Job, write: Write, tmp_path: Path
) -> None:
    job["train"]["epochs"] = 4
    sweep |= {"base": write(job), "trials": 12}
    del sweep["vary"]["data.fold.hold"]
    calm = run("sweep", put(sweep, tmp_path, output=f"{tmp_path}/calm/"))
    assert calm.code == 0, calm.err
    manifest, store = put(sweep, tmp_path), open_store(sweep["output"])
    seed = random.randrange(1 << 32)
    print(f"killed as seed {seed} says")
    chance = random.Random(seed)
    workers = [start("sweep", manifest) for _ in range(4)]
    for _ in range(20):
        time.sleep(chance.uniform(0.2, 3.0))
        victim = chance.randrange(4)
        workers[victim].send(signal.SIGKILL)
        assert workers[victim].wait().code in (-signal.SIGKILL, 0)
        workers[victim] = start("sweep", manifest)
    ends: list[Ended] = [worker.wait() for worker in workers]
    assert [end.code for end in ends] == [0] * 4, ends[0].err
    assert outcome(store) == outcome(open_store(f"{tmp_path}/calm"))
    assert len(keys(store, "results/")) == 12 + 6 + 3
    for number in range(12):
        # Each step of each trial counted once, whoever did it, up to where the trial was given up.
        assert run("audit", f"{store.uri}trials/{number:05d}").code == 0
