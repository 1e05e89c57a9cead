"""Topology from environments, exit codes, and the parent of the ranks."""

import faulthandler
import itertools
import os
import signal
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import (
    ConfigurationError,
    DataError,
    ExitCode,
    StopRequested,
    exit_code_of,
    most_fatal,
)
from worker.launch.spawn import run_ranks
from worker.launch.topology import Spawn, detect, first_host, require_divisible
from worker.train.rank import Rank
from worker.train.stop import StopFlag

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1234",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "20017",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
LOCAL = Spawn(0, 1, 1, "localhost", 29400)
INDEXED = {"JOB_COMPLETION_INDEX": "1", "WORKER_NODES": "2", "MASTER_ADDR": "job-0.job"}


@pytest.mark.parametrize(
    ("env", "gpus", "nproc", "expected"),
    [
        ({}, 0, None, Spawn(0, 1, 1, "localhost", 29400)),
        ({}, 0, 3, Spawn(0, 1, 3, "localhost", 29400)),
        ({}, 8, None, Spawn(0, 1, 8, "localhost", 29400)),
        (TORCHRUN, 4, None, Rank(5, 8, 1, 4, "a", 1234)),
        (SLURM, 1, None, Rank(3, 4, 1, 2, "node07", 20017)),
        (SLURM | {"MASTER_ADDR": "b", "MASTER_PORT": "9"}, 1, None, Rank(3, 4, 1, 2, "b", 9)),
        (SLURM | {"SLURM_NTASKS": "1"}, 2, None, Spawn(0, 1, 2, "localhost", 29400)),
        (INDEXED, 2, None, Spawn(1, 2, 2, "job-0.job", 29400)),
        (INDEXED | {"JOB_COMPLETION_INDEX": "0", "WORKER_NODES": "1"}, 0, None, LOCAL),
    ],
)
def test_environments(env: dict[str, str], gpus: int, nproc: int | None, expected: object) -> None:
    assert detect(env, gpus, nproc) == expected


@pytest.mark.parametrize(
    ("env", "nproc", "complaint"),
    [
        ({"RANK": "0"}, None, "WORLD_SIZE: not set"),
        (TORCHRUN | {"RANK": "x"}, None, "RANK: must be a whole number, not 'x'"),
        (TORCHRUN, 2, "--nproc: RANK says"),
        (SLURM, 2, "--nproc: SLURM_PROCID says"),
        ({"JOB_COMPLETION_INDEX": "1", "WORKER_NODES": "2"}, None, "MASTER_ADDR: not set"),
        ({"JOB_COMPLETION_INDEX": "1"}, None, "WORKER_NODES: not set"),
        (INDEXED | {"WORKER_NODES": "1"}, None, "WORKER_NODES: 1, but this is pod 1"),
    ],
)
def test_broken_environments_are_named(
    env: dict[str, str], nproc: int | None, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        detect(env, 0, nproc)


def test_spawned_ranks_are_numbered_over_nodes() -> None:
    ranks = [Spawn(node, 3, 2, "a", 1).ranks() for node in range(3)]
    assert [rank.rank for node in ranks for rank in node] == list(range(6))
    assert [rank.local_rank for rank in ranks[2]] == [0, 1]
    assert {rank.world_size for node in ranks for rank in node} == {6}


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("node[1-2]", "node1"),
        ("node[01-04,7],gpu3", "node01"),
        ("a,b", "a"),
        ("rack1-n[09-10]x", "rack1-n09x"),
    ],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_a_batch_that_the_ranks_cannot_share_names_sizes_that_can() -> None:
    require_divisible(48, 3)
    with pytest.raises(
        ConfigurationError, match="64 is not a multiple of the 3 ranks; start 1, 2, 4"
    ):
        require_divisible(64, 3)


CODES = [78, 65, 76, 70, 69, 75, 0]


@given(st.lists(st.sampled_from(CODES), min_size=1))
def test_the_most_fatal_code_wins(codes: list[int]) -> None:
    assert most_fatal(codes) == min(codes, key=CODES.index)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (0, 0),
        (75, 75),
        (78, 78),
        (1, 69),
        (3, 70),
        (-9, 69),
        (-15, 69),
        (-11, 70),
        (137, 69),
        (139, 70),
    ],
)
def test_statuses_become_codes(status: int, code: int) -> None:
    assert exit_code_of(status) == code


def end_with(*actions: object) -> int:
    """The exit code of ranks that raise, exit or kill themselves as told."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        action = actions[rank.rank]
        if isinstance(action, Exception):
            raise action
        if isinstance(action, signal.Signals):
            faulthandler.disable()
            os.kill(os.getpid(), action)
        if isinstance(action, float):
            time.sleep(action)

    return run_ranks(Spawn(0, 1, len(actions), "localhost", 0), run, StopFlag())


def test_the_parent_returns_the_code_of_its_ranks() -> None:
    assert end_with(None, None) == 0
    assert end_with(None, ValueError("boom")) == ExitCode.BUG
    assert end_with(DataError("bad"), None, ValueError("boom")) == ExitCode.DATA
    assert end_with(None, signal.SIGKILL) == ExitCode.INFRASTRUCTURE
    assert end_with(None, signal.SIGSEGV) == ExitCode.BUG
    assert end_with(ConfigurationError("x")) == ExitCode.CONFIGURATION


def test_a_rank_that_hangs_after_a_peer_ended_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.launch.spawn._PEER_GRACE_SECONDS", 0.2)
    began = time.monotonic()
    assert end_with(60.0, signal.SIGKILL) == ExitCode.INFRASTRUCTURE
    assert end_with(60.0, StopRequested("before the ranks met")) == ExitCode.STOPPED
    assert time.monotonic() - began < 30


def test_signals_reach_every_rank() -> None:
    stop = StopFlag()
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    stop.install()

    def run(rank: Rank, listener: socket.socket | None) -> None:
        if rank.rank == 1:
            os.kill(os.getppid(), signal.SIGUSR1)
        for _ in itertools.takewhile(lambda _: not stop.requested, range(1000)):
            time.sleep(0.01)
        if not stop.requested:
            raise ValueError("never heard of it")

    try:
        assert run_ranks(Spawn(0, 1, 3, "localhost", 0), run, stop) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
