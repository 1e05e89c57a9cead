"""A rank that hangs shows its stack and ends."""

import functools

import pytest

from tests.support import sabotage
from tests.support.processes import Job, Run, Start, Write


def test_a_rank_that_hangs_shows_its_stack_and_ends(
    start: Start, run: Run, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_STALL_SECONDS", "8")
    ended = run(
        "train", "--nproc", "2", write(job), sabotage=functools.partial(sabotage.stuck_in_a_step, 2)
    )
    assert ended.code == 69, ended.err
    assert "rank 1 has done nothing for 8 s (WORKER_STALL_SECONDS); its stacks follow" in ended.err
    assert "sabotage.py" in ended.err
    monkeypatch.delenv("WORKER_STALL_SECONDS")
    assert run("train", write(job)).code == 0
