"""The product's decode processes over a data set, without a job around them."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

from worker.data.augment import Augmentation
from worker.data.batch_requests import Request, Work
from worker.data.decode_image import ImageSpec
from worker.data.decode_processes import SLOTS, DecodeProcesses
from worker.data.decoded_cache import DecodedImages
from worker.data.epoch_plan import EpochPlan, Ids
from worker.data.index import parse_address, read_index
from worker.data.loader import Batch, Loader
from worker.data.preprocessing import Preprocessing
from worker.data.process_part import ProcessPart
from worker.data.read_cache import Cache
from worker.data.reader import SampleReader
from worker.data.scratch import Scratch
from worker.data.shared_slots import Slots
from worker.job.decoding import fetches_for, processes_for
from worker.manifest import Augment

_LANES = 32
_READ_MEMORY = 512 << 20
_SCRATCH = 10 << 30
_SPEC = ImageSpec(10**8)


class Decoding:
    """Training batches of a data set, epoch after epoch.

    To be made before this process starts a thread or CUDA.

    Args:
        uri: Where shards and index are.
        threads: How many threads decode, in all processes together.
        batch_size: Images of a batch.
        preprocessing: Size and normalization of the images.
        augment: Augmentation of the images.
        scratch: Where to keep what was read and decoded.
    """

    def __init__(
        self,
        uri: str,
        threads: int,
        batch_size: int,
        preprocessing: Preprocessing,
        *,
        augment: Augment | None = None,
        scratch: Path | None = None,
    ) -> None:
        address = parse_address(uri)
        self._store, self._index = address.store, read_index(address)
        self._batch_size = batch_size
        self._size = preprocessing.crop_size
        self._folder = scratch
        self._augmentation = Augmentation(preprocessing, augment or Augment(), seed=0)
        self.processes = processes_for(threads, _LANES)
        self._threads = -(-threads // self.processes)
        self._slots = Slots(SLOTS, batch_size, self._size)
        parts = [functools.partial(self._part, index) for index in range(self.processes)]
        self._running = DecodeProcesses(parts, self._work, self._slots)

    def batches(self, position: float = 0.0) -> Iterator[Batch]:
        """Yield batches without end, from a position (0 to 1) within the first epoch."""
        steps = EpochPlan(self._index.counts, self._batch_size, 0, epoch=0).steps
        start = int(steps * position)
        for epoch in range(10**6):
            yield from self._running.batches(Request(dataset="train", epoch=epoch, start=start))
            start = 0

    def lock_pages(self) -> None:
        """See `DecodeProcesses`."""
        self._running.lock_pages()

    def close(self) -> None:
        """End the processes."""
        self._running.close()

    def _work(self, request: Request) -> Work:
        prepare_for = self._augmentation.prepare_for(request.epoch)
        return Work(batches=self._ids(request), prepare_for=prepare_for)

    def _ids(self, request: Request) -> Iterable[Ids]:
        plan = EpochPlan(self._index.counts, self._batch_size, 0, epoch=request.epoch)
        return (plan.batch(step) for step in range(request.start, plan.steps))

    def _part(self, index: int) -> ProcessPart:
        cache = Cache(_READ_MEMORY // self.processes, fetches_for(self.processes))
        lanes = -(-_LANES // self.processes)
        scratch = decoded = None
        if self._folder:
            encoded = sum(shard.bytes for shard in self._index.shards)
            scratch = Scratch(self._folder, _SCRATCH, self.processes, encoded)
        reader = SampleReader(self._store, self._index, cache=cache, scratch=scratch, lanes=lanes)
        if scratch:
            decoded = DecodedImages(scratch, reader, _SPEC)
        loader = Loader(reader, self._threads, _SPEC, decoded=decoded)
        readers, loaders = {"train": reader}, {"train": loader}
        return ProcessPart(
            index=index,
            count=self.processes,
            readers=readers,
            loaders=loaders,
            resolve=self._work,
            slots=self._slots,
            size=self._size,
        )
