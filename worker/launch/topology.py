"""The ranks that a process starts itself, and the check that ranks can share a batch evenly."""

from dataclasses import dataclass

from worker.errors import ConfigurationError
from worker.ranks.rank import Rank

PORT = 29400
MAX_NODES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Spawn:
    """The ranks that this process starts itself."""

    node_rank: int
    """Index of this node."""
    nodes: int
    """The number of nodes."""
    local_world_size: int
    """Ranks on this node."""
    master_addr: str
    """Host name or address at which rank 0 listens."""
    master_port: int
    """Port on which rank 0 listens; with a single node, any free port is used instead."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.local_world_size

    @property
    def leads(self) -> bool:
        """Whether rank 0 is among the ranks that this process starts."""
        return self.node_rank == 0

    def ranks(self) -> list[Rank]:
        """Return the ranks to start on this node."""
        first = self.node_rank * self.local_world_size
        return [
            Rank(
                rank=first + local,
                world_size=self.world_size,
                local_rank=local,
                local_world_size=self.local_world_size,
                master_addr=self.master_addr,
                master_port=self.master_port,
            )
            for local in range(self.local_world_size)
        ]


def require_divisible(batch_size: int, world_size: int) -> None:
    """Raise `ConfigurationError` unless the ranks can share the global batch evenly."""
    if batch_size % world_size:
        some = range(1, min(batch_size, MAX_NODES) + 1)
        sizes = [size for size in some if batch_size % size == 0]
        near = sorted(sorted(sizes, key=lambda size: abs(size - world_size))[:3])
        raise ConfigurationError(
            f"train.batch_size: {batch_size} is not a multiple of the {world_size} ranks; "
            f"start {_any_of(near)} ranks or change the batch size"
        )


def one_node(per_node: int) -> Spawn:
    """Return a topology that starts all ranks of a job on this machine."""
    return Spawn(
        node_rank=0, nodes=1, local_world_size=per_node, master_addr="localhost", master_port=PORT
    )


def _any_of(numbers: list[int]) -> str:
    """Return the numbers as an enumeration such as `2, 4 or 8`."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
