"""Settings for reading and decoding images, from the environment and this machine.

Environment: `WORKER_LOADER_THREADS`, `WORKER_READ_MEMORY_MIB`, `WORKER_SCRATCH` and
`WORKER_SCRATCH_GIB`.
"""

from dataclasses import dataclass

from worker.environment import Settings
from worker.errors import ConfigurationError
from worker.logs import count
from worker.manifest import Data
from worker.numbers import ceil_div
from worker.ranks.cpu_cores import cores_per_rank
from worker.ranks.rank import Rank

_THREADS_PER_PROCESS = 2
"""Few, as threads contend for the GIL; more than one, as each process costs memory."""
_MIN_SHARE_EVEN = 0.6  # of the desired number of processes
_FETCHES = 32
"""Concurrent reads of a rank, over all its processes; each process has at least two. The value
is the usual number of lanes, so that the first batch from a distant store takes few round trips.
"""


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Settings for reading and decoding images."""

    threads: int | None
    """Decoding threads per rank; None for one per core."""
    memory: int
    """Maximum number of bytes that a rank reads ahead and keeps."""
    scratch: str
    """Folder of the disk cache; empty for no cache."""
    scratch_limit: int
    """Maximum size of the disk cache, in bytes."""


def check_decoding(data: Data, gpus: int) -> None:
    """Raise `ConfigurationError` if the environment or machine does not meet `data`'s needs."""
    read_settings()
    if data.decoder == "cuda" and not gpus:
        raise ConfigurationError("data.decoder: cuda needs a GPU, but this machine has none")


def processes_for(threads: int, lanes: int) -> int:
    """Return the number of decoding processes, given the threads and `lanes` of a rank.

    Two processes that share a lane would both fetch its data, so there are never more processes
    than lanes, and slightly fewer if the lanes can then be divided evenly.
    """
    wished = max(1, min(ceil_div(threads, _THREADS_PER_PROCESS), lanes))
    # For example, 10 processes for 32 lanes become 8 with 4 lanes each, but 6 for 7 lanes stay 6:
    # an even share would leave only one.
    even = max(count for count in range(1, wished + 1) if lanes % count == 0)
    return even if even >= _MIN_SHARE_EVEN * wished else wished


def fetches_for(processes: int) -> int:
    """Return the maximum number of concurrent reads in each process of a rank."""
    return max(2, _FETCHES // processes)


@dataclass(frozen=True)
class Decoding:
    """Threads and processes that decode images for a rank on this machine."""

    threads: int
    """Total number of decoding threads; 0 to decode in the training thread."""
    processes: int
    """Number of processes that run the threads; 0 for the rank itself."""

    def __str__(self) -> str:
        if not self.threads:
            return "the training thread itself"
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{count(self.threads, 'thread')} in {processes}"


def decoding_of(rank: Rank, lanes: int) -> Decoding:
    """Return the threads and processes that a rank would decode with on this machine."""
    chosen = read_settings().threads
    threads = cores_per_rank(rank) if chosen is None else chosen
    own = ceil_div(lanes, rank.world_size)
    return Decoding(threads, processes_for(threads, own) if threads else 0)


def read_settings() -> LoaderSettings:
    """Read the settings from the environment; raise `ConfigurationError` if one is malformed."""
    settings = Settings.from_env()
    return LoaderSettings(
        threads=settings.loader_threads,
        memory=settings.read_memory_mib << 20,
        scratch=settings.scratch,
        scratch_limit=settings.scratch_gib << 30,
    )
