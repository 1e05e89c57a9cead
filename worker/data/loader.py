"""Batches that threads decode in the order requested, a few batches ahead of the caller.

Decoding releases the interpreter lock, though not all of the time: on an H100 machine with 16
cores, one process decoded 1,600 images a second with 4 threads and 2,400 with 16. So a rank has
several processes (`worker.data.decode_processes`) with a few threads each.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worker.data.decode_image import ImageSpec, decode
from worker.data.decoded_cache import DecodedImages
from worker.data.epoch_plan import Ids, sample_ids
from worker.data.reader import BadSample, Reader

DECODE_AHEAD = 2
"""Number of batches decoded ahead of the one being waited for."""
_FETCH_AHEAD, _FETCH_SAMPLES = 2, 1024  # minimum batches, maximum samples fetched ahead
_TASKS_PER_THREAD = 4

Prepare = Callable[[int, Tensor, Tensor], None]
"""(index, uint8 [3, H, W], out): writes an image into `out`, in the form that the model sees.

The index is the sample's position among the ids that this function was created for.
"""


@dataclass(frozen=True)
class Bad:
    """A sample that was left out."""

    id: int
    """Its sample id."""
    reason: str
    """Why it was left out, in one word."""
    text: str
    """A human-readable message that names the sample and the reason."""


@dataclass(kw_only=True)
class Batch:
    """A rank's part of a global batch, possibly empty."""

    images: Tensor
    """uint8 [n, 3, S, S], channels last."""
    labels: Tensor
    """int64 [n]."""
    ids: Ids
    """Sample ids, [n]."""
    valid: Tensor
    """bool [n]; False if a bad sample left a hole."""
    bad: list[Bad] = field(default_factory=list)
    """The bad samples."""
    keys: dict[int, str] = field(default_factory=dict)
    """The keys of the samples by their place in the batch, if they were asked for."""

    @classmethod
    def of_size(cls, ids: Ids, size: int, *, pin_memory: bool) -> "Batch":
        """Return a batch to write into.

        Args:
            ids: The draws.
            size: Side of the images, in pixels.
            pin_memory: Whether to page-lock the images, for copies to a GPU.

        Returns:
            A batch of uint8 images, [N, 3, size, size] in channels-last order.
        """
        shape = (len(ids), size, size, 3)
        # Threads could not write into a tensor that was made in the caller's inference mode.
        with torch.inference_mode(mode=False):
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
            labels = torch.zeros(len(ids), dtype=torch.int64)
            valid = torch.ones(len(ids), dtype=torch.bool)
        return cls(
            images=images.permute(0, 3, 1, 2), labels=labels, ids=sample_ids(ids), valid=valid
        )

    def leave_out(self, place: int, problem: BadSample, name: str) -> None:
        """Mark a sample as bad.

        Args:
            place: Its index in the batch.
            problem: What is wrong with it.
            name: Its human-readable name.
        """
        self.valid[place] = False
        self.labels[place] = 0
        self.images[place] = 0
        text = f"{name}: {problem}"
        self.bad.append(Bad(int(self.ids[place]), problem.reason, text))


class Decoder(Protocol):
    """A decoder that fills whole batches on a device other than the CPU."""

    def fill(self, batch: Batch, reader: Reader, prepare: Prepare) -> None:
        """Read, decode and prepare every sample of a batch.

        Args:
            batch: The batch to fill.
            reader: The reader of the samples.
            prepare: Turns a decoded image into an image of the batch.
        """


class Loader:
    """A decoder that turns batches of sample ids into batches of images, with `threads` threads.

    Args:
        reader: The reader of the samples.
        threads: Number of decoding threads; with 0, batches are decoded on demand by the caller.
        spec: Decoding settings.
        pin_memory: Whether to page-lock new batches, for copies to a GPU; ignored with `decoder`.
        decoder: Fills whole batches on another device; None to decode on the CPU.
        decoded: Cache of decoded images; None for no cache.
    """

    def __init__(
        self,
        reader: Reader,
        threads: int,
        spec: ImageSpec,
        *,
        pin_memory: bool = False,
        decoder: Decoder | None = None,
        decoded: DecodedImages | None = None,
    ) -> None:
        self._reader = reader
        self._decoded = decoded
        self._threads = threads
        self._spec = spec
        self._pin = pin_memory and decoder is None
        self._decoder = decoder
        self._running: list[Future[None]] = []
        # A decoder on another device is fed by one thread, which has its own stream.
        workers = 1 if decoder else threads
        self._pool = ThreadPoolExecutor(max(1, workers), "decode", _use_one_torch_thread)

    def batches(
        self,
        batches_of_ids: Iterable[Ids],
        prepare_for: Callable[[Ids], Prepare],
        *,
        size: int,
        allocate: Callable[[Ids], Batch] | None = None,
        places_of: Callable[[Ids], Ids] | None = None,
        keyed: bool = False,
    ) -> Generator[Batch]:
        """Decode batches in the order given. Bad samples leave holes.

        Args:
            batches_of_ids: The draws of each batch.
            prepare_for: Returns the function that prepares the images of the draws passed to it.
            size: Side of the images in pixels.
            allocate: Makes the batch to write into; by default, in newly allocated memory. If the
                iteration is abandoned, memory may be reused only after `drain`.
            places_of: Returns which places of a batch to fill; by default, all of them.
            keyed: Whether the batches are to have the keys of their samples.

        Raises:
            WorkerError: An error from the store, raised at the batch that it affects.
        """
        allocate = allocate or (lambda ids: Batch.of_size(ids, size, pin_memory=self._pin))
        places_of = places_of or (lambda ids: np.arange(len(ids)))
        upcoming = iter(batches_of_ids)
        fetching: deque[tuple[Ids, Ids]] = deque()
        decoding: deque[tuple[Batch, list[Future[None]]]] = deque()
        # Without threads, decoding ahead would only delay the batch that the caller waits for.
        decode_ahead = DECODE_AHEAD if self._threads or self._decoder else 0
        ahead = _FETCH_AHEAD
        try:
            for done in itertools.count():
                # Reading ahead ramps up slowly so as not to delay the first batch.
                while len(fetching) <= min(ahead, _FETCH_AHEAD + done):
                    ids = next(upcoming, None)
                    if ids is None:
                        break
                    places = places_of(ids)
                    self._prefetch(sample_ids(ids[places]))
                    fetching.append((ids, places))
                    ahead = self._fetch_ahead(len(places))
                # Fetched batches move on to be decoded; each is allocated only now, as shared
                # memory for batches is scarce.
                while fetching and len(decoding) <= decode_ahead:
                    ids, places = fetching.popleft()
                    batch = allocate(ids)
                    prepare = prepare_for(ids[places])
                    started = self._start(batch, prepare, places.tolist(), keyed=keyed)
                    decoding.append((batch, started))
                if not decoding:
                    return
                yield _finish(*decoding.popleft())
        finally:
            # If the iteration was abandoned, cancel pending tasks; `drain` waits for those already
            # running.
            futures = [future for _, started in decoding for future in started]
            self._running = [future for future in futures if not future.cancel()]

    def drain(self) -> None:
        """Wait until no task is still writing to the batches of an abandoned iteration."""
        wait(self._running)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _fetch_ahead(self, size: int) -> int:
        samples = min(self._reader.lookahead, _FETCH_SAMPLES)
        return max(_FETCH_AHEAD, samples // max(1, size))

    def _start(
        self, batch: Batch, prepare: Prepare, places: list[int], *, keyed: bool
    ) -> list[Future[None]]:
        if self._decoder:
            return [self._pool.submit(self._decoder.fill, batch, self._reader, prepare)]
        if not self._threads:
            self._fill(batch, prepare, places, 0, keyed=keyed)
            return []
        # Several small tasks per thread balance the load, as some images take longer than others.
        step = max(1, len(places) // (self._threads * _TASKS_PER_THREAD))
        return [
            self._pool.submit(self._fill, batch, prepare, places[at : at + step], at, keyed=keyed)
            for at in range(0, len(places), step)
        ]

    def _fill(
        self, batch: Batch, prepare: Prepare, places: list[int], first: int, *, keyed: bool
    ) -> None:
        """Fill these places; `prepare` gets consecutive indices that start at `first`."""
        for index, place in enumerate(places, first):
            number = int(batch.ids[place])
            if keyed:
                batch.keys[place] = self._reader.key(number)
            try:
                image, label = self._decode(number)
                prepare(index, image, batch.images[place])
                batch.labels[place] = label
                # The memory may be that of an earlier batch, which had a hole here.
                batch.valid[place] = True
            except BadSample as problem:
                batch.leave_out(place, problem, self._reader.name(number))

    def _prefetch(self, ids: Ids) -> None:
        self._reader.prefetch(self._decoded.missing(ids) if self._decoded else ids)

    def _decode(self, number: int) -> tuple[Tensor, int]:
        """Return the image and label of a sample, from the scratch cache if they are in it."""
        kept = self._decoded.get(number) if self._decoded else None
        if kept:
            return kept
        sample = self._reader.read(number)
        image = decode(sample.image, self._spec)
        if self._decoded:
            self._decoded.put(number, image, sample.label)
        return image, sample.label


def _use_one_torch_thread() -> None:
    """Limit torch to one thread here.

    An intra-op pool per decode thread would oversubscribe the cores.
    """
    torch.set_num_threads(1)


def _finish(batch: Batch, futures: list[Future[None]]) -> Batch:
    for future in futures:
        future.result()
    return batch
