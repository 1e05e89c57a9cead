"""The identity of a process among the ranks of a job."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A process of a job; rank 0 listens at `master_addr` and `master_port`."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    cores: int | None = None
    """CPU cores of this rank's own, where the scheduler gives each rank some; else ranks share."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes and logs for all."""
        return self.rank == 0
