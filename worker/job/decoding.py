"""Settings of reading and decoding, from the environment and this machine.

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
"""Few, as they take turns at an interpreter lock; not one, as a process costs memory, too."""
_MIN_SHARE_EVEN = 0.6  # of the processes wished for
_FETCHES = 32
"""Reads of a rank at a time, in all its processes; each has two at least. As many as there are
lanes by default, so that the first batch from a store far away takes few round trips."""


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Settings of reading and decoding."""

    threads: int | None
    """Threads of a rank; None for one per core."""
    memory: int
    """Bytes that a rank reads ahead and keeps at most."""
    scratch: str
    """Folder of the cache on disk; empty for none."""
    scratch_limit: int
    """Its size in bytes."""


def check_decoding(data: Data, gpus: int) -> None:
    """Raise `ConfigurationError` where the environment or the machine cannot be as `data` needs."""
    read_settings()
    if data.decoder == "cuda" and not gpus:
        raise ConfigurationError("data.decoder: cuda needs a GPU, and there is none here")


def processes_for(threads: int, lanes: int) -> int:
    """Return how many processes decode with so many threads in all, for a rank that reads `lanes`.

    Two processes that share a lane both fetch what lies in it: so no more than there are lanes, and
    if few less divide the lanes evenly, those.
    """
    wished = max(1, min(ceil_div(threads, _THREADS_PER_PROCESS), lanes))
    even = max(count for count in range(1, wished + 1) if lanes % count == 0)
    return even if even >= _MIN_SHARE_EVEN * wished else wished


def fetches_for(processes: int) -> int:
    """Return how many reads each of a rank's processes has under way at most."""
    return max(2, _FETCHES // processes)


@dataclass(frozen=True)
class Decoding:
    """The decoding of a rank on this machine."""

    threads: int
    """The number of threads."""
    processes: int
    """In how many processes they are; 0 for the rank itself."""

    def __str__(self) -> str:
        if not self.threads:
            return "the training thread itself"
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{count(self.threads, 'thread')} in {processes}"


def decoding_of(rank: Rank, lanes: int) -> Decoding:
    """Return how this rank of a job with so many lanes would decode on this machine."""
    chosen = read_settings().threads
    threads = cores_per_rank(rank) if chosen is None else chosen
    own = ceil_div(lanes, rank.world_size)
    return Decoding(threads, processes_for(threads, own) if threads else 0)


def read_settings() -> LoaderSettings:
    """Return the settings of the environment; raises `ConfigurationError` for a malformed one."""
    settings = Settings.from_env()
    return LoaderSettings(
        threads=settings.loader_threads,
        memory=settings.read_memory_mib << 20,
        scratch=settings.scratch,
        scratch_limit=settings.scratch_gib << 30,
    )
