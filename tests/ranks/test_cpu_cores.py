"""The cores that a rank may count on."""

import math
import os
from pathlib import Path

import pytest

from worker.ranks import cpu_cores as cores
from worker.ranks.cpu_cores import cgroup_cores, cores_per_rank
from worker.ranks.rank import Rank


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An empty hierarchy of groups, and beside it the list of this process's."""
    (tmp_path / "root").mkdir()
    return tmp_path


def limit(tree: Path, group: str, **files: str) -> None:
    folder = tree / "root" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"cpu.{name}").write_text(text)


def found(tree: Path, own: str) -> float:
    (tree / "own").write_text(own)
    return cgroup_cores(tree / "root", tree / "own")


def test_a_container_is_limited_at_its_root(tree: Path) -> None:
    limit(tree, "", max="800000 100000\n")
    assert found(tree, "0::/\n") == 8


def test_the_least_of_all_groups_around_counts(tree: Path) -> None:
    limit(tree, "slurm", max="max 100000\n")
    limit(tree, "slurm/job_7", max="250000 100000\n")
    limit(tree, "slurm/job_7/step_0", max="400000 100000\n")
    assert found(tree, "0::/slurm/job_7/step_0\n") == 2.5


def test_version_1(tree: Path) -> None:
    limit(tree, "cpu/docker/x", cfs_quota_us="150000\n", cfs_period_us="50000\n")
    limit(tree, "cpu", cfs_quota_us="-1\n", cfs_period_us="100000\n")
    own = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n"
    assert found(tree, own) == 3


def test_no_limit_and_no_groups(tree: Path) -> None:
    assert found(tree, "0::/\n") == math.inf
    assert cgroup_cores(tree / "root", tree / "nothing") == math.inf


def test_a_rank_gets_its_share_and_at_least_one(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(tree, "", max="350000 100000\n")
    (tree / "own").write_text("0::/\n")
    monkeypatch.setattr(cores, "_CGROUPS", tree / "root")
    monkeypatch.setattr(cores, "_OWN", tree / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert (
        cores_per_rank(
            Rank(
                rank=0,
                world_size=1,
                local_rank=0,
                local_world_size=1,
                master_addr="localhost",
                master_port=0,
            )
        )
        == 4
    )
    assert (
        cores_per_rank(
            Rank(
                rank=0,
                world_size=2,
                local_rank=0,
                local_world_size=2,
                master_addr="localhost",
                master_port=0,
            )
        )
        == 2
    )
    assert (
        cores_per_rank(
            Rank(
                rank=0,
                world_size=8,
                local_rank=0,
                local_world_size=8,
                master_addr="localhost",
                master_port=0,
            )
        )
        == 1
    )
    # Slurm has bound the task to cores that no other rank has.
    assert (
        cores_per_rank(
            Rank(
                rank=0,
                world_size=8,
                local_rank=0,
                local_world_size=8,
                master_addr="localhost",
                master_port=0,
                cores=3,
            )
        )
        == 3
    )
    assert (
        cores_per_rank(
            Rank(
                rank=0,
                world_size=8,
                local_rank=0,
                local_world_size=8,
                master_addr="localhost",
                master_port=0,
                cores=16,
            )
        )
        == 4
    )
