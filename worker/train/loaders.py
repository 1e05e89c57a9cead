"""The readers and loaders of one rank, in its own process or in decoding processes."""

import functools
import logging
from collections.abc import Generator
from pathlib import Path

import torch

from worker.data.batch_requests import Batches, Request
from worker.data.decode_on_gpu import GpuDecoder, require_nvjpeg
from worker.data.decode_processes import SLOTS, DecodeProcesses
from worker.data.decoded_cache import DecodedImages
from worker.data.in_process_loader import InProcess
from worker.data.loader import Batch, Decoder, Loader
from worker.data.process_part import ProcessPart
from worker.data.read_cache import Cache
from worker.data.reader import SampleReader
from worker.data.scratch import Scratch
from worker.data.shared_slots import Slots
from worker.job.decoding import decoding_of, fetches_for, read_settings
from worker.job.job import Job
from worker.numbers import ceil_div
from worker.ranks.rank import Rank
from worker.train.batches import TRAIN, VAL, BatchFeed

log = logging.getLogger(__name__)


class Loaders:
    """Source of one rank's batches; create it before the process starts CUDA or any thread.

    Args:
        job: The job.
        rank: This rank.
        device: The device that the batches are for.
    """

    def __init__(self, job: Job, rank: Rank, device: torch.device) -> None:
        self._job = job
        self._rank = rank
        self._device = device
        self._settings = read_settings()
        self._decoding = decoding_of(rank, job.lanes)
        self._lanes = ceil_div(job.lanes, rank.world_size)
        self.feed = BatchFeed(job, rank, on_gpu=device.type == "cuda")
        self._size = job.preprocessing.crop_size
        self._batches: Batches | None = None
        # Now, not in `start`: a fork must precede CUDA and all threads.
        if self._decoding.threads and job.manifest.data.decoder == "cpu":
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
        if self._job.manifest.data.decoder == "cuda":
            require_nvjpeg(self._device)
            decoder = GpuDecoder(self._device, self._job.image_spec)
        loaders = self._loaders(self._readers(1), self._decoding.threads, decoder)
        self._batches = InProcess(loaders, self.feed.work, self._size)

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
        slots = Slots(SLOTS, self.feed.most_images, self._size)
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
            size=self._size,
        )

    def _readers(self, processes: int) -> dict[str, SampleReader]:
        """Build this process's readers, with its share of memory and scratch space."""
        cache = Cache(self._settings.memory // processes, fetches_for(processes))
        scratch = self._scratch(processes)
        sets = {TRAIN: (self._job.train, ceil_div(self._lanes, processes))}
        if self._job.val:
            # One lane: evaluation reads the samples in the order of the shards.
            sets[VAL] = (self._job.val, 1)
        return {
            name: SampleReader(
                dataset.store, dataset.index, cache=cache, scratch=scratch, lanes=lanes
            )
            for name, (dataset, lanes) in sets.items()
        }

    def _scratch(self, processes: int) -> Scratch | None:
        """Return this process's share of the scratch space, or None if none is configured."""
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
                reader,
                threads,
                self._job.image_spec,
                # Page-locking requires CUDA, which a decoding process must not use; `start` locks
                # the memory that it shares. If decoding threads run in this process, the
                # GPU decodes, and there is nothing to pin.
                pin_memory=pin and not threads,
                decoder=decoder,
                decoded=decoded,
            )
        return loaders
