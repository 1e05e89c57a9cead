"""The share of the machine's CPU cores that is available to a rank."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from worker.ranks.rank import Rank

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores_per_rank(rank: Rank) -> int:
    """Return the number of CPU cores available to this rank, at least 1."""
    if rank.cores:
        return min(rank.cores, cores_of_node())
    return max(1, cores_of_node() // rank.local_world_size)


def cores_of_node() -> int:
    """Return how many CPU cores this node's ranks may use, given their affinity and cgroup.

    The affinity does not reflect a container's limit: with one thread per core of the machine, the
    kernel would throttle all threads most of the time, including the one that feeds the GPU.
    """
    limit = cgroup_cores(_CGROUPS, _OWN)
    affinity = len(os.sched_getaffinity(0))
    return affinity if math.isinf(limit) else max(1, min(affinity, math.ceil(limit)))


def cgroup_cores(root: Path, own: Path) -> float:
    """Return how many cores the cgroups of this process allow; infinity if unlimited.

    Version 2 has `cpu.max`, version 1 `cpu.cfs_quota_us` and `cpu.cfs_period_us`; a limit also
    applies to all groups below it (https://docs.kernel.org/admin-guide/cgroup-v2.html).

    Args:
        root: Mount point of the hierarchies, `/sys/fs/cgroup`.
        own: The file that lists this process's groups, `/proc/self/cgroup`.
    """
    # Limits nest, so the strictest one applies.
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
    """Yield the folders of the groups that may limit this process's cores, with all ancestors."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # Lines are `ID:CONTROLLERS:PATH`; version 2 has a single one, `0::PATH` (man 7 cgroups).
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root
        group = PurePosixPath(name.lstrip("/"))
        # The path may be the host's, which does not exist inside a container; there, the last
        # parent, `.`, is the mount point, which is the container's own group.
        for part in (group, *group.parents):
            yield mount / part
