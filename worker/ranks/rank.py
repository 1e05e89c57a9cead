"""The identity of a process among the ranks of a job."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A process of a job."""

    rank: int
    """Its number among all ranks."""
    world_size: int
    """The total number of ranks."""
    local_rank: int
    """Its number on this node."""
    local_world_size: int
    """The number of ranks on this node."""
    master_addr: str
    """The address on which rank 0 listens."""
    master_port: int
    """The port on which rank 0 listens."""
    cores: int | None = None
    """The number of CPU cores assigned to this rank by the scheduler; None if ranks share all."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes and logs for all ranks."""
        return self.rank == 0

    @property
    def rendezvous(self) -> str:
        """The meeting place of the ranks, as `host:port`; IPv6 has brackets (RFC 3986)."""
        host = f"[{self.master_addr}]" if ":" in self.master_addr else self.master_addr
        return f"{host}:{self.master_port}"
