"""The end of a job is watched like the rest of it, and may take longer than a collective."""

import functools
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.processes import Job, Run, Write
from worker.ranks.leader import by_leader


def slow_result(seconds: float, *, beats: bool) -> None:
    """Rank 0 takes long to write the result, with or without a sign of life."""
    from worker.train import finish

    real = getattr(finish, "stage_result")

    def stage(*arguments: Any, beat: Callable[[], None], **named: Any) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
            if beats:
                beat()
        return real(*arguments, beat=beat, **named)

    setattr(finish, "stage_result", stage)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short, but longer than a busy machine leaves a process without a core."""
    monkeypatch.setenv("WORKER_STALL_SECONDS", "8")
    monkeypatch.setenv("WORKER_COLLECTIVE_SECONDS", "10")


def test_an_export_that_hangs_is_ended(run: Run, write: Write, job: Job) -> None:
    job["train"]["epochs"] = 1
    plan = functools.partial(slow_result, 1000, beats=False)
    ended = run("train", "--nproc", "2", write(job), sabotage=plan)
    assert ended.code == 69, ended.err
    assert "rank 0 has done nothing for 8 s" in ended.err
    assert run("train", write(job)).code == 0


def test_ranks_wait_for_an_export_that_takes_long(run: Run, write: Write, job: Job) -> None:
    job["train"]["epochs"] = 1
    plan = functools.partial(slow_result, 20, beats=True)
    ended = run("train", "--nproc", "2", write(job), sabotage=plan)
    assert ended.code == 0, ended.err


def test_only_the_leader_does_it(alone: None) -> None:
    with by_leader("a test", lambda: pytest.fail("it waited for itself")) as leads:
        assert leads
