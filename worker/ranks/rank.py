"""The identity of a process among the ranks of a job."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A process of a job."""

    rank: int
    """Its number among all ranks."""
    world_size: int
    """The number of all ranks."""
    local_rank: int
    """Its number on this node."""
    local_world_size: int
    """The number of ranks on this node."""
    master_addr: str
    """Where rank 0 listens."""
    master_port: int
    """Its port."""
    cores: int | None = None
    """CPU cores of this rank's own, where the scheduler gives each rank some; else ranks share."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes and logs for all."""
        return self.rank == 0
