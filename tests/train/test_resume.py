"""One rank reads a checkpoint for all."""

import functools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Job, Run, Start, Write
from tests.support.sabotage import slow_steps
from tests.support.stores import unfinish
from worker.store import open_store


def note_reads(folder: str) -> None:
    """Every rank that reads a checkpoint leaves a file."""
    import torch.distributed as dist

    from worker.train import resume

    real = getattr(resume, "read_commit")

    def read(*arguments: Any) -> Any:
        Path(folder, f"read by {dist.get_rank()}").touch()
        return real(*arguments)

    setattr(resume, "read_commit", read)


def test_one_rank_reads_for_all(
    start: Start, run: Run, write: Write, job: dict[str, Any], tmp_path: Path
) -> None:
    slow = functools.partial(slow_steps, 1.0)
    running = start("train", "--nproc", "2", write(job), sabotage=slow)
    running.wait_for("step 1/")
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    noting = functools.partial(note_reads, str(tmp_path))
    ended = run("train", "--nproc", "3", write(job), sabotage=noting)
    assert ended.code == 0, ended.err
    assert [path.name for path in tmp_path.glob("read by *")] == ["read by 0"]


def slow_reads(seconds: float) -> None:
    """Reading a checkpoint takes long, but makes progress."""
    from worker.train import resume

    real = getattr(resume, "read_commit")

    def read(store: Any, name: Any, beat: Callable[[], None]) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
            beat()
        return real(store, name, beat)

    setattr(resume, "read_commit", read)


def test_a_read_may_take_longer_than_a_stall_and_a_collective(
    run: Run, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("train", write(job)).code == 0
    unfinish(open_store(job["output"]))
    monkeypatch.setenv("WORKER_STALL_SECONDS", "8")
    monkeypatch.setenv("WORKER_COLLECTIVE_SECONDS", "10")
    plan = functools.partial(slow_reads, 20)
    ended = run("train", "--nproc", "2", write(job), sabotage=plan)
    assert ended.code == 0, ended.err
