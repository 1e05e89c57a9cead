"""Batches for one rank: decoded by threads, in the order of the plan, a few batches ahead.

Threads, since decoding releases the interpreter lock: nothing is copied between processes, nothing
lies in shared memory, and no child has to be shielded from signals. Each writes its images straight
into the batch.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from worker.data.image import decode
from worker.data.plan import Ids
from worker.data.reader import BadSample, SampleReader

_DECODE_AHEAD = 2
_FETCH_AHEAD, _FETCH_SAMPLES = 2, 1024
_TASKS_PER_THREAD = 4

Prepare = Callable[[int, Tensor, Tensor], None]
"""(place in the batch, uint8 [3, H, W], out): writes the image as the model sees it into `out`."""


@dataclass(frozen=True)
class Bad:
    """A sample that was left out, why in one word, and all about it for people."""

    id: int
    reason: str
    text: str


@dataclass
class Batch:
    """One rank's part of a global batch, possibly empty.

    `images`: uint8 [n, 3, S, S], channels last; `labels`: int64 [n]; `ids`: sample ids [n];
    `valid`: bool [n], false where a bad sample left a hole. `bad` says why.
    """

    images: Tensor
    labels: Tensor
    ids: Ids
    valid: Tensor
    bad: list[Bad] = field(default_factory=list)

    @classmethod
    def of_size(cls, ids: Ids, size: int, pin_memory: bool) -> "Batch":
        """A batch to write into."""
        shape = (len(ids), size, size, 3)
        # Threads could not write into a tensor that was made in the caller's inference mode.
        with torch.inference_mode(False):
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
            labels = torch.zeros(len(ids), dtype=torch.int64)
            valid = torch.ones(len(ids), dtype=torch.bool)
        return cls(images.permute(0, 3, 1, 2), labels, ids, valid)

    def leave_out(self, place: int, problem: BadSample, name: str) -> None:
        """Mark the sample at `place` as bad."""
        self.valid[place] = False
        self.images[place] = 0
        text = f"{name}: {problem}"
        self.bad.append(Bad(int(self.ids[place]), problem.reason, text))


class Decoder(Protocol):
    """Fills a whole batch on another device than the CPU."""

    def fill(self, batch: Batch, reader: SampleReader, prepare: Prepare) -> None:
        """Read, decode and prepare every sample of `batch`, and put its images there."""


class Loader:
    """Decodes batches of sample ids with `threads` threads; 0: in the caller's, when asked."""

    def __init__(
        self,
        reader: SampleReader,
        threads: int,
        max_pixels: int,
        pin_memory: bool = False,
        decoder: Decoder | None = None,
    ) -> None:
        self._reader = reader
        self._threads = threads
        self._max_pixels = max_pixels
        self._pin = pin_memory and decoder is None
        self._decoder = decoder
        # One thread feeds a GPU, on a stream of its own.
        workers = 1 if decoder else threads
        self._pool = ThreadPoolExecutor(max(1, workers), "decode", _be_one_of_many)

    def batches(
        self, batches_of_ids: Iterable[Ids], prepare_for: Callable[[Ids], Prepare], size: int
    ) -> Generator[Batch]:
        """The batches in the order given; `size` is the side of the images in pixels.

        Bad samples leave holes. Raises what the store raises, at the batch that it belongs to.
        """
        upcoming = iter(batches_of_ids)
        fetching: deque[Ids] = deque()
        decoding: deque[tuple[Batch, list[Future[None]]]] = deque()
        decode_ahead = _DECODE_AHEAD if self._threads or self._decoder else 0
        ahead = _FETCH_AHEAD
        try:
            for done in itertools.count():
                # Reading ahead begins slowly, not to keep the first batch waiting.
                while len(fetching) <= min(ahead, _FETCH_AHEAD + done):
                    ids = next(upcoming, None)
                    if ids is None:
                        break
                    self._reader.prefetch(ids)
                    fetching.append(ids)
                    ahead = self._fetch_ahead(len(ids))
                while fetching and len(decoding) <= decode_ahead:
                    ids = fetching.popleft()
                    batch = Batch.of_size(ids, size, self._pin)
                    decoding.append((batch, self._start(batch, prepare_for(ids))))
                if not decoding:
                    return
                yield _finish(*decoding.popleft())
        finally:
            for _, futures in decoding:
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _fetch_ahead(self, size: int) -> int:
        samples = min(self._reader.lookahead, _FETCH_SAMPLES)
        return max(_FETCH_AHEAD, samples // max(1, size))

    def _start(self, batch: Batch, prepare: Prepare) -> list[Future[None]]:
        if self._decoder:
            return [self._pool.submit(self._decoder.fill, batch, self._reader, prepare)]
        count = len(batch.ids)
        if not self._threads:
            self._fill(batch, prepare, range(count))
            return []
        step = max(1, count // (self._threads * _TASKS_PER_THREAD))
        parts = [range(at, min(at + step, count)) for at in range(0, count, step)]
        return [self._pool.submit(self._fill, batch, prepare, places) for places in parts]

    def _fill(self, batch: Batch, prepare: Prepare, places: Iterable[int]) -> None:
        for place in places:
            number = int(batch.ids[place])
            try:
                sample = self._reader.read(number)
                prepare(place, decode(sample.image, self._max_pixels), batch.images[place])
                batch.labels[place] = sample.label
            except BadSample as problem:
                batch.leave_out(place, problem, self._reader.name(number))


def _be_one_of_many() -> None:
    """A team of threads for each thread that decodes would be more than there are cores."""
    torch.set_num_threads(1)


def _finish(batch: Batch, futures: list[Future[None]]) -> Batch:
    for future in futures:
        future.result()
    return batch
