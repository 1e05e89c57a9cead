"""Training through a store that misbehaves: what can heal does, what cannot ends with its code."""

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.processes import Job, Run, Start, Write
from tests.support.proxy import FAULTS, Proxy, Request, proxy
from tests.support.stores import contents, unfinish
from worker.checkpoint.commit import list_commits, read_commit
from worker.store import Store, open_store


@pytest.fixture
def faulty(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to the S3 server for `worker` processes; the tests themselves go straight there."""
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "20")
    with proxy(s3_endpoint) as server:
        yield server


@pytest.fixture
def remote(job: Job, dataset: Any, bucket: str) -> Job:
    """A job whose data and output are in S3, with several checkpoints."""
    for part in ("train", "val"):
        store = open_store(f"{bucket}/{part}")
        for key, data in contents(open_store(f"{dataset}/{part}")).items():
            store.put(key, data)
        job["data"][part] = store.uri
    return job | {"output": f"{bucket}/run/", "checkpoint": {"every_steps": 2, "keep": 9}}


def through(server: Proxy, run: Run, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """`worker ARGUMENTS` with the proxy as its endpoint."""
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        return run(*arguments)


def check_whole(store: Store) -> None:
    for name in list_commits(store):
        assert read_commit(store, name), name


IN_SHORT = ("wrong bytes",)
_calm: list[bytes] = []
"""The model without any faults, which is the same for all of them."""


@pytest.mark.parametrize(
    "fault",
    [
        fault if fault in IN_SHORT else pytest.param(fault, marks=pytest.mark.e2e)
        for fault in FAULTS
    ],
)
def test_faults_that_heal_change_nothing(
    fault: str,
    run: Run,
    write: Write,
    remote: Job,
    faulty: Proxy,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every seventh request fails, or the first for each object, and the next try passes."""

    seen: set[str] = set()

    def plan(request: Request) -> str | None:
        first = request.path not in seen
        seen.add(request.path)
        if fault == "stall":
            return fault if request.number in (9, 40) else None
        if fault in ("412", "409"):  # for what nobody else has made
            return fault if request.conditional and first else None
        if fault == "wrong bytes":  # of what is compared with a digest
            digested = "/checkpoints/" in request.path or ".tar" in request.path
            return fault if digested and request.method == "GET" and first else None
        return fault if request.number % 7 == 0 else None

    faulty.plan = plan
    ended = through(faulty, run, monkeypatch, "train", write(remote))
    assert ended.code == 0, ended.err
    store = open_store(remote["output"])
    check_whole(store)
    if not _calm:
        calm = remote | {"output": f"{bucket}/calm/"}
        assert run("train", write(calm)).code == 0
        _calm.append(open_store(calm["output"]).get("final/model.safetensors"))
    (expected,) = _calm
    assert store.get("final/model.safetensors") == expected
    # And on the way back in: the checkpoint is read through the same faults.
    unfinish(store)
    store.delete("final/model.json")
    *newer, oldest = list_commits(store)
    for name in newer:
        store.delete(f"commits/{name}.json")
    resumed = through(faulty, run, monkeypatch, "train", write(remote))
    assert resumed.code == 0, resumed.err
    assert f"resumes after step {oldest.step} " in resumed.err
    assert store.get("final/model.safetensors") == expected
    assert faulty.met


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("500", 69),
        ("expired", 78),
        pytest.param("reset", 69, marks=pytest.mark.e2e),
        pytest.param("409", 69, marks=pytest.mark.e2e),
    ],
)
def test_faults_that_stay_end_the_job_and_lose_nothing(
    fault: str,
    code: int,
    run: Run,
    write: Write,
    remote: Job,
    faulty: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the second commit on, the store takes nothing any more."""
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "15")

    def plan(request: Request) -> str | None:
        late = "/checkpoints/" in request.path and "/00000002-" not in request.path
        if fault == "409":
            late = "/commits/" in request.path and "/00000002-" not in request.path
            return fault if late and request.conditional else None
        return fault if late and request.method in ("PUT", "POST") else None

    faulty.plan = plan
    manifest = write(remote)
    ended = through(faulty, run, monkeypatch, "train", "--nproc", "2", manifest)
    assert ended.code == code, ended.err
    store = open_store(remote["output"])
    assert [name.step for name in list_commits(store)] == [2]
    check_whole(store)
    assert json.loads(store.get("attempts/000001.json"))["id"]
    resumed = run("train", manifest)
    assert resumed.code == 0, resumed.err
    assert "resumes after step 2" in resumed.err


def test_a_store_that_lists_no_uploads_sees_the_job_done(
    run: Run, write: Write, remote: Job, faulty: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.plan = lambda request: (
        "405" if request.method == "GET" and "uploads" in request.path else None
    )
    ended = through(faulty, run, monkeypatch, "train", write(remote))
    assert ended.code == 0, ended.err
    assert open_store(remote["output"]).get("done.json")
    assert faulty.met


def test_a_stop_before_training_begins_ends_at_once(
    start: Start, write: Write, remote: Job, faulty: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the store drips, and no rank is there yet that would look for a stop."""
    faulty.plan = lambda request: "drip" if "index.json" in request.path else None
    with monkeypatch.context() as patch:
        patch.setenv("WORKER_STORE_DEADLINE_SECONDS", "120")
        patch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        running = start("train", write(remote))
        deadline = time.monotonic() + 60
        while not faulty.met and time.monotonic() < deadline:
            time.sleep(0.1)
        began = time.monotonic()
        running.send(signal.SIGTERM)
        ended = running.wait()
    assert ended.code == 75, ended.err
    assert "stopped on request before anything started" in ended.err
    assert time.monotonic() - began < 60  # it did not wait for the deadline
