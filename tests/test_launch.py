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
from worker.forks import STOP_SIGNALS
from worker.launch.spawn import run_ranks
from worker.launch.topology import Spawn, detect, first_host, one_node, require_divisible
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1234",
}
SLURM = {
    "SLURM_JOB_ID": "20017",
    "SLURM_JOB_NODELIST": "node[05-08]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
ONE_TASK = SLURM | {
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
PER_NODE = SLURM | {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
UNEVEN = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_LOCALID": "0"}
# A batch script, whose own process is no step.
SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
ELEMENT = ONE_TASK | {"SLURM_ARRAY_JOB_ID": "20010", "SLURM_ARRAY_TASK_ID": "7"}
INDEXED = {"JOB_COMPLETION_INDEX": "1", "WORKER_NODES": "2"}
ONE_POD = INDEXED | {"JOB_COMPLETION_INDEX": "0", "WORKER_NODES": "1"}
KUBEFLOW = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "4",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29500",
    "JOB_COMPLETION_INDEX": "1",
}
# The older operator says RANK, too, and means the node.
PYTORCHJOB = KUBEFLOW | {"RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
LOCAL = Spawn(node_rank=0, nodes=1, local_world_size=1, master_addr="localhost", master_port=29400)


@pytest.mark.parametrize(
    ("env", "gpus", "nproc", "expected"),
    [
        pytest.param(*row[1:], id=row[0])
        for row in [
            ("plain", {}, 0, None, LOCAL),
            (
                "plain, ranks asked for",
                {},
                0,
                3,
                Spawn(
                    node_rank=0,
                    nodes=1,
                    local_world_size=3,
                    master_addr="localhost",
                    master_port=29400,
                ),
            ),
            (
                "plain, GPUs",
                {},
                8,
                None,
                Spawn(
                    node_rank=0,
                    nodes=1,
                    local_world_size=8,
                    master_addr="localhost",
                    master_port=29400,
                ),
            ),
            (
                "plain, fewer than GPUs",
                {},
                8,
                2,
                Spawn(
                    node_rank=0,
                    nodes=1,
                    local_world_size=2,
                    master_addr="localhost",
                    master_port=29400,
                ),
            ),
            (
                "torchrun",
                TORCHRUN,
                4,
                None,
                Rank(
                    rank=5,
                    world_size=8,
                    local_rank=1,
                    local_world_size=4,
                    master_addr="a",
                    master_port=1234,
                ),
            ),
            (
                "torchrun in srun",
                SLURM | TORCHRUN,
                4,
                None,
                Rank(
                    rank=5,
                    world_size=8,
                    local_rank=1,
                    local_world_size=4,
                    master_addr="a",
                    master_port=1234,
                ),
            ),
            (
                "torchrun in Kubeflow",
                PYTORCHJOB | TORCHRUN,
                4,
                None,
                Rank(
                    rank=5,
                    world_size=8,
                    local_rank=1,
                    local_world_size=4,
                    master_addr="a",
                    master_port=1234,
                ),
            ),
            (
                "Kubeflow",
                KUBEFLOW,
                4,
                None,
                Spawn(
                    node_rank=1,
                    nodes=2,
                    local_world_size=4,
                    master_addr="job-node-0-0.job",
                    master_port=29500,
                ),
            ),
            (
                "PyTorchJob",
                PYTORCHJOB,
                4,
                None,
                Spawn(
                    node_rank=1,
                    nodes=2,
                    local_world_size=4,
                    master_addr="job-node-0-0.job",
                    master_port=29500,
                ),
            ),
            (
                "Kubeflow, ranks by GPUs",
                KUBEFLOW | {"PET_NPROC_PER_NODE": "auto"},
                8,
                None,
                Spawn(
                    node_rank=1,
                    nodes=2,
                    local_world_size=8,
                    master_addr="job-node-0-0.job",
                    master_port=29500,
                ),
            ),
            (
                "Kubeflow, one node",
                KUBEFLOW | {"PET_NNODES": "1", "PET_NODE_RANK": "0"},
                4,
                None,
                Spawn(
                    node_rank=0,
                    nodes=1,
                    local_world_size=4,
                    master_addr="localhost",
                    master_port=29400,
                ),
            ),
            (
                "a task per GPU",
                SLURM,
                1,
                None,
                Rank(
                    rank=3,
                    world_size=4,
                    local_rank=1,
                    local_world_size=2,
                    master_addr="node07",
                    master_port=20017,
                ),
            ),
            (
                "a task per GPU that sees all",
                SLURM,
                2,
                None,
                Rank(
                    rank=3,
                    world_size=4,
                    local_rank=1,
                    local_world_size=2,
                    master_addr="node07",
                    master_port=20017,
                ),
            ),
            (
                "nodes unlike",
                UNEVEN,
                1,
                None,
                Rank(
                    rank=3,
                    world_size=4,
                    local_rank=0,
                    local_world_size=1,
                    master_addr="node07",
                    master_port=20017,
                ),
            ),
            (
                "address given",
                SLURM | {"MASTER_ADDR": "b", "MASTER_PORT": "9"},
                1,
                None,
                Rank(
                    rank=3,
                    world_size=4,
                    local_rank=1,
                    local_world_size=2,
                    master_addr="b",
                    master_port=9,
                ),
            ),
            (
                "a task per node",
                PER_NODE,
                8,
                None,
                Spawn(
                    node_rank=1,
                    nodes=2,
                    local_world_size=8,
                    master_addr="node07",
                    master_port=20017,
                ),
            ),
            (
                "a task per node, ranks asked for",
                PER_NODE,
                0,
                3,
                Spawn(
                    node_rank=1,
                    nodes=2,
                    local_world_size=3,
                    master_addr="node07",
                    master_port=20017,
                ),
            ),
            (
                "one task",
                ONE_TASK,
                2,
                None,
                Spawn(
                    node_rank=0,
                    nodes=1,
                    local_world_size=2,
                    master_addr="localhost",
                    master_port=29400,
                ),
            ),
            ("element of an array", ELEMENT, 1, None, LOCAL),
            (
                "in a batch script",
                SCRIPT,
                2,
                None,
                Spawn(
                    node_rank=0,
                    nodes=1,
                    local_world_size=2,
                    master_addr="localhost",
                    master_port=29400,
                ),
            ),
            (
                "Indexed Job",
                INDEXED,
                2,
                None,
                Spawn(
                    node_rank=1,
                    nodes=2,
                    local_world_size=2,
                    master_addr="pre-train-0.pre-worker.ns",
                    master_port=29400,
                ),
            ),
            (
                "Indexed Job, address given",
                INDEXED | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"},
                1,
                None,
                Spawn(
                    node_rank=1, nodes=2, local_world_size=1, master_addr="10.0.0.1", master_port=1
                ),
            ),
            ("Indexed Job of one pod", ONE_POD, 0, None, LOCAL),
        ]
    ],
)
def test_environments(env: dict[str, str], gpus: int, nproc: int | None, expected: object) -> None:
    assert detect(env, gpus, nproc, lambda: "pre-train-1.pre-worker.ns") == expected


@pytest.mark.parametrize(
    ("env", "nproc", "complaint"),
    [
        ({"RANK": "0"}, None, "LOCAL_RANK: not set"),
        ({"LOCAL_RANK": "0", "RANK": "0"}, None, "WORLD_SIZE: not set"),
        (TORCHRUN | {"RANK": "x"}, None, "RANK: must be a whole number from 0, not 'x'"),
        (TORCHRUN, 2, "--nproc: LOCAL_RANK says"),
        (KUBEFLOW | {"PET_NNODES": "1:4"}, None, "PET_NNODES: must be one number of nodes"),
        (KUBEFLOW | {"PET_MASTER_ADDR": ""}, None, "PET_MASTER_ADDR: not set"),
        (KUBEFLOW, 2, "--nproc: PET_NPROC_PER_NODE says"),
        (SLURM, 2, "--nproc: SLURM_STEP_NUM_TASKS says"),
        (SLURM | {"SLURM_HET_SIZE": "2"}, None, "SLURM_HET_SIZE: heterogeneous jobs"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "?"}, None, "SLURM_STEP_TASKS_PER_NODE: cannot"),
        (SCRIPT | {"SLURM_NTASKS": "4"}, None, "4 tasks, but this is its script; put `srun`"),
        (INDEXED, None, "MASTER_ADDR: not set, and pod 0 cannot be told .* 'laptop'"),
        ({"JOB_COMPLETION_INDEX": "1"}, None, "WORKER_NODES: not set"),
        (INDEXED | {"WORKER_NODES": "1"}, None, "WORKER_NODES: 1, but this is pod 1"),
    ],
)
def test_broken_environments_are_named(
    env: dict[str, str], nproc: int | None, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        detect(env, 0, nproc, lambda: "laptop")


def test_spawned_ranks_are_numbered_over_nodes() -> None:
    ranks = [
        Spawn(node_rank=node, nodes=3, local_world_size=2, master_addr="a", master_port=1).ranks()
        for node in range(3)
    ]
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
        ConfigurationError, match="64 is not a multiple of the 3 ranks; start 1, 2 or 4"
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
        (-6, 69),
        (-11, 70),
        (134, 69),
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

    return run_ranks(
        Spawn(
            node_rank=0,
            nodes=1,
            local_world_size=len(actions),
            master_addr="localhost",
            master_port=0,
        ),
        run,
        StopFlag(),
    )


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
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop.install()

    def run(rank: Rank, listener: socket.socket | None) -> None:
        if rank.rank == 1:
            os.kill(os.getppid(), signal.SIGUSR1)
        for _ in itertools.takewhile(lambda _: not stop.requested, range(1000)):
            time.sleep(0.01)
        if not stop.requested:
            raise ValueError("never heard of it")

    try:
        assert (
            run_ranks(
                one_node(3),
                run,
                stop,
            )
            == 0
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
