"""The readers and loaders of one rank, in its own process or in decoding processes."""

import functools
import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch

from worker.data.batch_requests import Batches, Request, Work
from worker.data.decode_image import ImageSpec
from worker.data.decode_on_gpu import GpuDecoder, require_nvjpeg
from worker.data.decode_processes import SLOTS, DecodeProcesses
from worker.data.decoded_cache import DecodedImages
from worker.data.in_process_loader import InProcess
from worker.data.loader import Batch, Decoder, Loader
from worker.data.process_part import ProcessPart
from worker.data.read_cache import Cache
from worker.data.reader import Reader, SampleReader
from worker.data.scratch import Scratch
from worker.data.shared_slots import Slots
from worker.job.dataset import Dataset
from worker.job.decoding import decoding_of, fetches_for, read_settings
from worker.numbers import ceil_div
from worker.ranks.rank import Rank

log = logging.getLogger(__name__)


class Feed(Protocol):
    """Batches as a pure function of a request, the same in all processes of a rank."""

    @property
    def most_images(self) -> int:
        """The size of the largest batch."""

    def work(self, request: Request) -> Work:
        """Return the batches that a request asks for, and how to prepare them."""


F = TypeVar("F", bound=Feed)


@dataclass(frozen=True, kw_only=True)
class ReadSet:
    """A set of images to read."""

    open: Callable[[Cache, Scratch | None, int], Reader]
    """Opens it in one of several processes; the last argument is their number."""
    bytes: int
    """The size of its images, as far as known."""


def read_set(dataset: Dataset, lanes: int) -> ReadSet:
    """Return the images of a data set that is read from `lanes` places at once."""

    def open_reader(cache: Cache, scratch: Scratch | None, processes: int) -> Reader:
        return SampleReader(
            dataset.store,
            dataset.index,
            cache=cache,
            scratch=scratch,
            lanes=ceil_div(lanes, processes),
        )

    return ReadSet(open=open_reader, bytes=sum(shard.bytes for shard in dataset.index.shards))


@dataclass(frozen=True, kw_only=True)
class LoadPlan(Generic[F]):
    """The images that a rank loads, and the settings for it."""

    sets: Mapping[str, ReadSet]
    """The sets of images, by name."""
    feed: F
    """Its batches."""
    spec: ImageSpec
    """Settings for decoding."""
    size: int
    """Side of the images, in pixels."""
    lanes: int
    """Number of places that all ranks together read from at once."""
    on_gpu: bool = False
    """Whether the GPU decodes."""


class Loaders(Generic[F]):
    """Source of one rank's batches; create it before the process starts CUDA or any thread.

    Args:
        plan: What to load.
        rank: This rank.
        device: The device that the batches are for.
    """

    def __init__(self, plan: LoadPlan[F], rank: Rank, device: torch.device) -> None:
        self._plan = plan
        self._rank = rank
        self._device = device
        self._settings = read_settings()
        self._decoding = decoding_of(rank, plan.lanes)
        self.feed = plan.feed
        self._batches: Batches | None = None
        # Now, not in `start`: a fork must precede CUDA and all threads.
        if self._decoding.threads and not plan.on_gpu:
            self._batches = self._fork()

    def start(self) -> None:
        """Finish the setup that needs the device, which must already be initialized."""
        if isinstance(self._batches, DecodeProcesses):
            if self._device.type == "cuda":
                try:
                    self._batches.lock_pages()
                except RuntimeError as error:
                    log.warning("copying batches to the GPU will be slow: %s", error)
            return
        decoder = None
        if self._plan.on_gpu:
            require_nvjpeg(self._device)
            decoder = GpuDecoder(self._device, self._plan.spec)
        loaders = self._loaders(self._readers(1), self._decoding.threads, decoder)
        self._batches = InProcess(loaders, self.feed.work, self._plan.size)

    def batches(self, request: Request) -> Generator[Batch]:
        """See `Batches`."""
        if not self._batches:
            raise RuntimeError("`start` must be called before `batches`")
        return self._batches.batches(request)

    def close(self) -> None:
        """Stop reading."""
        if self._batches:
            self._batches.close()

    def _fork(self) -> DecodeProcesses:
        processes = self._decoding.processes
        slots = Slots(SLOTS, self.feed.most_images, self._plan.size)
        parts = [functools.partial(self._part, index, slots) for index in range(processes)]
        return DecodeProcesses(parts, self.feed.work, slots)

    def _part(self, index: int, slots: Slots) -> ProcessPart:
        """Build one part's readers and loaders; called in the part's own process."""
        processes = self._decoding.processes
        readers = self._readers(processes)
        loaders = self._loaders(readers, ceil_div(self._decoding.threads, processes), None)
        return ProcessPart(
            index=index,
            count=processes,
            readers=readers,
            loaders=loaders,
            resolve=self.feed.work,
            slots=slots,
            size=self._plan.size,
        )

    def _readers(self, processes: int) -> dict[str, Reader]:
        """Build this process's readers, with its share of memory and scratch space."""
        cache = Cache(self._settings.memory // processes, fetches_for(processes))
        scratch = self._scratch(processes)
        return {
            name: found.open(cache, scratch, processes) for name, found in self._plan.sets.items()
        }

    def _scratch(self, processes: int) -> Scratch | None:
        """Return this process's share of the scratch space, or None if none is configured."""
        settings = self._settings
        if not settings.scratch:
            return None
        encoded = sum(found.bytes for found in self._plan.sets.values())
        sharers = self._rank.local_world_size * processes
        return Scratch(Path(settings.scratch), settings.scratch_limit, sharers, encoded)

    def _loaders(
        self, readers: dict[str, Reader], threads: int, decoder: Decoder | None
    ) -> dict[str, Loader]:
        pin = self._device.type == "cuda"
        loaders = {}
        for name, reader in readers.items():
            decoded = None
            if reader.scratch and not decoder:
                decoded = DecodedImages(reader.scratch, reader, self._plan.spec)
            loaders[name] = Loader(
                reader,
                threads,
                self._plan.spec,
                # Page-locking requires CUDA, which a decoding process must not use; `start` locks
                # the memory that it shares. If decoding threads run in this process, the
                # GPU decodes, and there is nothing to pin.
                pin_memory=pin and not threads,
                decoder=decoder,
                decoded=decoded,
            )
        return loaders
