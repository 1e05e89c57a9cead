"""Ranks as every launcher describes them."""

import pytest

from worker.errors import (
    ConfigurationError,
)
from worker.launch.launchers import detect, first_host
from worker.launch.topology import Spawn, require_divisible
from worker.ranks.rank import Rank

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
                INDEXED | {"MASTER_ADDR": "[fd00::1]", "MASTER_PORT": "1"},
                1,
                None,
                Spawn(
                    node_rank=1, nodes=2, local_world_size=1, master_addr="fd00::1", master_port=1
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
        (TORCHRUN, 2, "--nproc: LOCAL_RANK shows"),
        (KUBEFLOW | {"PET_NNODES": "1:4"}, None, "PET_NNODES: must be a fixed number of nodes"),
        (INDEXED | {"MASTER_ADDR": "[fd00::1"}, None, "MASTER_ADDR: '.fd00::1' is not a host name"),
        (KUBEFLOW | {"PET_MASTER_ADDR": ""}, None, "PET_MASTER_ADDR: not set"),
        (KUBEFLOW, 2, "--nproc: PET_NPROC_PER_NODE shows"),
        (SLURM, 2, "--nproc: SLURM_STEP_NUM_TASKS shows"),
        (SLURM | {"SLURM_HET_SIZE": "2"}, None, "SLURM_HET_SIZE: heterogeneous jobs"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "?"}, None, "SLURM_STEP_TASKS_PER_NODE: cannot"),
        (SCRIPT | {"SLURM_NTASKS": "4"}, None, "4 tasks, but this is its batch script; put `srun`"),
        (INDEXED, None, "MASTER_ADDR: not set, and pod 0's name cannot be derived .* 'laptop'"),
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
