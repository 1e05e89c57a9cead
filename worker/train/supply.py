"""What a rank reads its data with, as the machine that it is on allows.

Environment: `WORKER_LOADER_THREADS`, `WORKER_READ_MEMORY_MIB`, `WORKER_SCRATCH` and
`WORKER_SCRATCH_GIB`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.data.cache import Cache, Scratch
from worker.data.gpu import GpuDecoder, require_nvjpeg
from worker.data.loader import Loader
from worker.data.reader import SampleReader
from worker.environment import number
from worker.errors import ConfigurationError
from worker.manifest import Data
from worker.train.distributed import cores_per_rank
from worker.train.job import Dataset
from worker.train.rank import Rank

SCRATCH_GIB = 10


@dataclass(frozen=True)
class _Settings:
    """Sizes in bytes; `threads` is None for one per core."""

    threads: int | None
    memory: int
    scratch: str
    scratch_limit: int


def check_supply(data: Data, gpus: int) -> None:
    """Raise `ConfigurationError` where the environment or the machine cannot be as `data` needs."""
    _settings()
    if data.decoder == "cuda" and not gpus:
        raise ConfigurationError("data.decoder: cuda needs a GPU, and there is none here")


class Supply:
    """One bound on memory and one scratch folder for all loaders of a rank."""

    def __init__(self, data: Data, rank: Rank, device: torch.device) -> None:
        settings = _settings()
        threads = settings.threads
        self._threads = cores_per_rank(rank) if threads is None else threads
        self._max_pixels = data.max_pixels
        self._pin = device.type == "cuda"
        self._decoder = None
        if data.decoder == "cuda":
            require_nvjpeg(device)
            self._decoder = GpuDecoder(device, data.max_pixels)
        self._cache = Cache(settings.memory)
        self._scratch = None
        if settings.scratch:
            limit = settings.scratch_limit
            self._scratch = Scratch(Path(settings.scratch), limit, rank.local_world_size)

    def open(self, dataset: Dataset, lanes: int) -> Loader:
        """A loader of one data set, which is read at `lanes` places at a time."""
        reader = SampleReader(dataset.store, dataset.index, self._cache, self._scratch, lanes)
        return Loader(reader, self._threads, self._max_pixels, self._pin, self._decoder)

    def close(self) -> None:
        """End the background reads."""
        self._cache.close()


def _settings() -> _Settings:
    threads = os.environ.get("WORKER_LOADER_THREADS")
    return _Settings(
        None if threads is None else number("WORKER_LOADER_THREADS", 0, least=0),
        number("WORKER_READ_MEMORY_MIB", 512, least=16) << 20,
        os.environ.get("WORKER_SCRATCH", ""),
        number("WORKER_SCRATCH_GIB", SCRATCH_GIB, least=1) << 30,
    )
