"""Which of the job's processes this one is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """One process of a job; `master_*` is where rank 0 listens."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    cores: int | None = None
    """CPU cores of this rank's own, where the scheduler gives each rank some; else ranks share."""
