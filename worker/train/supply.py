"""What a rank reads its data with, as the machine that it is on allows.

Environment: `WORKER_LOADER_THREADS`, `WORKER_READ_MEMORY_MIB`, `WORKER_SCRATCH` and
`WORKER_SCRATCH_GIB`.
"""

import functools
import logging
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.data.cache import Cache
from worker.data.decoded import DecodedImages
from worker.data.gpu import GpuDecoder, require_nvjpeg
from worker.data.in_process import InProcess
from worker.data.loader import Batch, Decoder, Loader
from worker.data.part import Part
from worker.data.processes import SLOTS, DecodeProcesses
from worker.data.reader import SampleReader
from worker.data.scratch import Scratch
from worker.data.slots import Slots
from worker.data.work import Batches, Request
from worker.environment import number
from worker.errors import ConfigurationError
from worker.logs import count
from worker.manifest import Data
from worker.train.cores import cores_per_rank
from worker.train.feed import TRAIN, VAL, Feed
from worker.train.job import Job
from worker.train.rank import Rank

log = logging.getLogger(__name__)

SCRATCH_GIB = 10
_THREADS_PER_PROCESS = 2
"""Few, as they take turns at an interpreter lock; not one, as a process costs memory, too."""
_MIN_SHARE_EVEN = 0.6  # of the processes wished for
_FETCHES = 32
"""Reads of a rank at a time, in all its processes; each has two at least. As many as there are
lanes by default, so that the first batch from a store far away takes few round trips."""


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


def processes_for(threads: int, lanes: int) -> int:
    """How many processes decode with that many threads together, for a rank that reads `lanes`.

    Two processes that share a lane both fetch what lies in it: so no more than there are lanes, and
    if few less divide the lanes evenly, those.
    """
    wished = max(1, min(-(-threads // _THREADS_PER_PROCESS), lanes))
    even = max(count for count in range(1, wished + 1) if lanes % count == 0)
    return even if even >= _MIN_SHARE_EVEN * wished else wished


def fetches_for(processes: int) -> int:
    """How many reads each of a rank's processes has under way at most."""
    return max(2, _FETCHES // processes)


@dataclass(frozen=True)
class Decoding:
    """How a rank decodes here: all its `threads`, in how many processes of its own."""

    threads: int
    processes: int

    def __str__(self) -> str:
        if not self.threads:
            return "the training thread itself"
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{count(self.threads, 'thread')} in {processes}"


def decoding_of(rank: Rank, lanes: int) -> Decoding:
    """How this rank of a job with so many lanes would decode on this machine."""
    chosen = _settings().threads
    threads = cores_per_rank(rank) if chosen is None else chosen
    own = -(-lanes // rank.world_size)
    return Decoding(threads, processes_for(threads, own) if threads else 0)


class Supply:
    """The batches of one rank; to be made before this process starts CUDA or any thread."""

    def __init__(self, job: Job, rank: Rank, device: torch.device) -> None:
        self._job = job
        self._rank = rank
        self._device = device
        self._settings = _settings()
        self._decoding = decoding_of(rank, job.lanes)
        self._lanes = -(-job.lanes // rank.world_size)
        self.feed = Feed(job, rank, device.type == "cuda")
        self._size = job.preprocessing.crop_size
        self._batches: Batches | None = None
        if self._decoding.threads and job.manifest.data.decoder == "cpu":
            self._batches = self._fork()

    def start(self) -> None:
        """Do what needs the device; to be called once it is in use."""
        if isinstance(self._batches, DecodeProcesses):
            if self._device.type == "cuda":
                try:
                    self._batches.lock_pages()
                except RuntimeError as error:
                    log.warning("batches are copied to the GPU slowly: %s", error)
            return
        decoder = None
        if self._job.manifest.data.decoder == "cuda":
            require_nvjpeg(self._device)
            decoder = GpuDecoder(self._device, self._job.image_spec)
        loaders = self._loaders(self._readers(1), self._decoding.threads, decoder)
        self._batches = InProcess(loaders, self.feed.work, self._size)

    def batches(self, request: Request) -> Generator[Batch]:
        """See `Batches`."""
        if not self._batches:
            raise RuntimeError("start comes first")
        return self._batches.batches(request)

    def close(self) -> None:
        """Stop reading."""
        if self._batches:
            self._batches.close()

    def _fork(self) -> DecodeProcesses:
        processes = self._decoding.processes
        slots = Slots(SLOTS, self.feed.most_images, self._size)
        parts = [functools.partial(self._part, index, slots) for index in range(processes)]
        return DecodeProcesses(parts, self.feed.work, slots)

    def _part(self, index: int, slots: Slots) -> Part:
        """A part, in its own process."""
        processes = self._decoding.processes
        readers = self._readers(processes)
        loaders = self._loaders(readers, -(-self._decoding.threads // processes), None)
        return Part(
            index=index,
            count=processes,
            readers=readers,
            loaders=loaders,
            resolve=self.feed.work,
            slots=slots,
            size=self._size,
        )

    def _readers(self, processes: int) -> dict[str, SampleReader]:
        """Readers in this process, one of several with one bound on memory and scratch."""
        cache = Cache(self._settings.memory // processes, fetches_for(processes))
        scratch = self._scratch(processes)
        sets = {TRAIN: (self._job.train, -(-self._lanes // processes))}
        if self._job.val:
            sets[VAL] = (self._job.val, 1)
        return {
            name: SampleReader(dataset.store, dataset.index, cache, scratch, lanes)
            for name, (dataset, lanes) in sets.items()
        }

    def _scratch(self, processes: int) -> Scratch | None:
        """Scratch of this process, one of several, if there is any."""
        settings, sets = self._settings, filter(None, (self._job.train, self._job.val))
        if not settings.scratch:
            return None
        encoded = sum(shard.bytes for dataset in sets for shard in dataset.index.shards)
        sharers = self._rank.local_world_size * processes
        return Scratch(Path(settings.scratch), settings.scratch_limit, sharers, encoded)

    def _loaders(
        self, readers: dict[str, SampleReader], threads: int, decoder: Decoder | None
    ) -> dict[str, Loader]:
        pin = self._device.type == "cuda"
        loaders = {}
        for name, reader in readers.items():
            decoded = None
            if reader.scratch and not decoder:
                decoded = DecodedImages(reader.scratch, reader, self._job.image_spec)
            loaders[name] = Loader(
                reader, threads, self._job.image_spec, pin and not threads, decoder, decoded
            )
        return loaders


def _settings() -> _Settings:
    threads = os.environ.get("WORKER_LOADER_THREADS")
    return _Settings(
        None if threads is None else number("WORKER_LOADER_THREADS", 0, least=0),
        number("WORKER_READ_MEMORY_MIB", 512, least=16) << 20,
        os.environ.get("WORKER_SCRATCH", ""),
        number("WORKER_SCRATCH_GIB", SCRATCH_GIB, least=1) << 30,
    )
