"""The crash matrix: SIGKILL anywhere, of a rank, of the parent or of all; then start again.

Where something is killed is decided by wrapping a function of the worker before it starts.
"""

import functools
import importlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Job, Run, Write
from worker.checkpoint.commit import list_commits, read_commit
from worker.store import open_store

PATIENCE_SECONDS = 20.0

# Where: module, function, and which of the calls that it is asked for.
POINTS = {
    "start": ("worker.train.run_rank", "begin_attempt", "any"),
    "claimed": ("worker.train.resume", "list_commits", "any"),
    "first batch": ("worker.learn.training_step", "Engine.launch", "step 0"),
    "mid-epoch": ("worker.learn.training_step", "Engine.launch", "step 3"),
    "snapshot": ("worker.checkpoint.host_copy", "HostCopy.take", "any"),
    "mid-upload": ("worker.store.local", "LocalStore.put_stream", "checkpoints/ within"),
    "between parts and commit": ("worker.train.durable_state", "publish_commit", "any"),
    "after commit": ("worker.train.durable_state", "publish_commit", "after"),
    "retention": ("worker.checkpoint.commit", "delete_parts", "any"),
    "staged result": ("worker.store.local", "LocalStore.put_stream", "records/ within"),
    "published": ("worker.checkpoint.publish", "settle", "any"),
    "final copy": ("worker.store.local", "LocalStore.replace", "final/ within"),
    "before done": ("worker.checkpoint.publish", "_remove_staged", "any"),
}
VICTIMS = ("rank", "parent", "all")
# Each point with one victim in turn, and with all of them where a result is at stake.
ROUNDS = [
    (point, victim)
    for number, point in enumerate(POINTS)
    for victim in VICTIMS
    if victim == VICTIMS[number % 3] or point in ("mid-upload", "published", "final copy")
]
# What all ranks come by; only rank 0 comes by the others.
SHARED = {"start", "first batch", "mid-epoch"}


def kill(victim: str) -> None:
    """Kill this process, its rank, the rank's parent, or rank and parent at once."""
    saves = multiprocessing.current_process().name == "save"
    rank = os.getppid() if saves else os.getpid()
    parent = parent_of(rank)
    if victim in ("parent", "all"):
        os.kill(parent, signal.SIGKILL)
    if victim in ("rank", "all"):
        os.kill(rank, signal.SIGKILL)
    if victim == "saver":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PATIENCE_SECONDS)  # the kernel kills what its parent has left
    os._exit(1)


def parent_of(pid: int) -> int:
    """The parent of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("PPid:")[2].split()[0])


def sabotage(point: str, victim: str, last_rank: bool) -> None:
    """Have the victim killed when a rank comes by `point`: rank 0, or the last one."""
    module_name, name, when = POINTS[point]
    owner = importlib.import_module(module_name)
    *path, attribute = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real = getattr(owner, attribute)

    def is_here() -> bool:
        import torch.distributed as dist

        at_last = dist.get_rank() == dist.get_world_size() - 1
        return at_last if last_rank else dist.get_rank() == 0

    def cut_off(pieces: Any) -> Iterator[bytes]:
        yield bytes(next(iter(pieces)))[:100]
        kill(victim)

    @functools.wraps(real)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if when.startswith("step") and (arguments[1] != int(when.split()[1]) or not is_here()):
            return real(*arguments, **named)
        if when.endswith("within"):
            _, key, size, pieces, *rest = arguments
            if key.startswith(when.split()[0]) and key.endswith("/model.safetensors"):
                return real(arguments[0], key, size, cut_off(pieces), *rest)
            return real(*arguments, **named)
        if when == "after":
            real(*arguments, **named)
        if not is_here():
            return real(*arguments, **named)
        kill(victim)
        return None

    setattr(owner, attribute, wrapped)


@pytest.fixture
def crashing(job: Job) -> Job:
    """Commits in mid-epoch and at the ends; of three commits, the first is deleted."""
    job["checkpoint"] = {"every_steps": 3, "keep": 1}
    job["optimizer"]["groups"].insert(0, {"match": "stage4", "freeze": {"steps": 4}})
    job["train"]["ema"] = 0.8
    return job


CALM: dict[str, bytes] = {}


def calm_end(ranks: str, run: Run, write: Write, job: Job, folder: Path) -> bytes:
    """The final weights of a job that nothing disturbs."""
    if ranks not in CALM:
        output = f"{folder}/calm-{ranks}/"
        assert run("train", "--nproc", ranks, write(job | {"output": output})).code == 0
        CALM[ranks] = open_store(output).get("final/model.safetensors")
    return CALM[ranks]


def check_crash(
    point: str, victim: str, ranks: str, run: Run, write: Write, job: Job, folder: Path
) -> None:
    """Crash a job at a point, and see it end well on the same and on another number of ranks."""
    expected = calm_end(ranks, run, write, job, folder)
    plan = functools.partial(sabotage, point, victim, point in SHARED and ranks != "1")
    crashed = run("train", "--nproc", ranks, write(job), sabotage=plan)
    alone = ranks == "1"
    survives = victim == "saver" or (victim == "rank" and not alone)
    assert crashed.code == (69 if survives else -signal.SIGKILL), crashed.err
    if crashed.code == 69:
        assert "was killed by SIGKILL, which the kernel sends when memory runs out" in crashed.err
    for again in (ranks, "3" if ranks == "2" else "2"):
        output = f"{folder}/again-{again}/"
        if Path(job["output"]).exists():
            shutil.copytree(job["output"], output)
        ended = run("train", "--nproc", again, write(job | {"output": output}))
        assert ended.code == 0, ended.err
        store = open_store(output)
        assert run("audit", output).code == 0
        assert all(read_commit(store, name) for name in list_commits(store))
        assert store.get("done.json")
        if again == ranks:
            assert store.get("final/model.safetensors") == expected


@pytest.mark.parametrize(
    ("point", "victim"),
    [
        ("first batch", "rank"),
        ("mid-upload", "parent"),
        ("between parts and commit", "all"),
        ("retention", "rank"),
        ("mid-upload", "saver"),
    ],
)
def test_killed_and_started_again(
    point: str, victim: str, run: Run, write: Write, crashing: Job, tmp_path: Path
) -> None:
    check_crash(point, victim, "2", run, write, crashing, tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize(("point", "victim"), ROUNDS)
def test_killed_anywhere_and_started_again(
    point: str, victim: str, run: Run, write: Write, crashing: Job, tmp_path: Path
) -> None:
    check_crash(point, victim, "2", run, write, crashing, tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("point", POINTS)
def test_a_single_rank_killed_and_started_again(
    point: str, run: Run, write: Write, crashing: Job, tmp_path: Path
) -> None:
    check_crash(point, "rank", "1", run, write, crashing, tmp_path)
