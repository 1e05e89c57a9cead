"""The share of the machine's processors that a rank may count on."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from worker.ranks.rank import Rank

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores_per_rank(rank: Rank) -> int:
    """CPU cores that this rank may count on, at least 1."""
    if rank.cores:
        return min(rank.cores, cores_of_node())
    return max(1, cores_of_node() // rank.local_world_size)


def cores_of_node() -> int:
    """CPU cores that all ranks of this node may count on, by affinity and by cgroup.

    A container's limit does not show in the affinity: with a thread for each core of the machine
    the kernel would stop them all, the one that feeds the GPU included, most of the time.
    """
    limit = cgroup_cores(_CGROUPS, _OWN)
    affinity = len(os.sched_getaffinity(0))
    return affinity if math.isinf(limit) else max(1, min(affinity, math.ceil(limit)))


def cgroup_cores(root: Path, own: Path) -> float:
    """The cores that the cgroups of this process allow it, or infinity.

    Version 2 has `cpu.max`, version 1 `cpu.cfs_quota_us` beside `cpu.cfs_period_us`; what holds for
    a group holds for those in it (https://docs.kernel.org/admin-guide/cgroup-v2.html).

    Args:
        root: Where the hierarchies are mounted, `/sys/fs/cgroup`.
        own: The list of this process's groups, `/proc/self/cgroup`.
    """
    limits = [math.inf]
    for folder in _folders(root, own):
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
        except (OSError, ValueError):
            continue
        if quota.isdecimal() and period.isdecimal() and int(period):  # else "max", or -1
            limits.append(int(quota) / int(period))
    return min(limits)


def _folders(root: Path, own: Path) -> Iterator[Path]:
    """The groups of this process that may limit its cores, with all that they are in."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root
        group = PurePosixPath(name.lstrip("/"))
        for part in (group, *group.parents):
            yield mount / part
