"""Batches for one rank: decoded by threads, in the order of the plan, a few batches ahead.

Threads, since decoding releases the interpreter lock: nothing is copied between processes, nothing
lies in shared memory, and no child has to be shielded from signals.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.data.plan import Ids
from worker.data.reader import Sample, SampleReader

_DECODE_AHEAD = 2
_FETCH_AHEAD = 4

Decode = Callable[[Sample, int], Tensor]
"""(sample, sample id) -> uint8 [3, S, S]."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch, possibly empty.

    `images`: uint8 [n, 3, S, S]; `labels`: int64 [n]; `ids`: sample ids, [n].
    """

    images: Tensor
    labels: Tensor
    ids: Ids


class Loader:
    """Decodes batches of sample ids with `threads` threads."""

    def __init__(self, reader: SampleReader, threads: int, pin_memory: bool) -> None:
        self._reader = reader
        self._pin = pin_memory
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def batches(self, batches_of_ids: Iterable[Ids], decode: Decode, size: int) -> Generator[Batch]:
        """The batches in the order given; `size` is the side of the images in pixels.

        Raises what reading and decoding raise, at the batch that the bad sample belongs to.
        """
        fetching: deque[Ids] = deque()
        decoding: deque[tuple[Ids, list[Future[tuple[Tensor, int]]]]] = deque()

        def start_decoding() -> None:
            ids = fetching.popleft()
            futures = [self._pool.submit(self._load, int(i), decode) for i in ids]
            decoding.append((ids, futures))

        try:
            for ids in batches_of_ids:
                self._reader.prefetch(ids.tolist())
                fetching.append(ids)
                if len(fetching) > _FETCH_AHEAD:
                    start_decoding()
                if len(decoding) > _DECODE_AHEAD:
                    yield self._collate(*decoding.popleft(), size)
            while fetching or decoding:
                if fetching:
                    start_decoding()
                yield self._collate(*decoding.popleft(), size)
        finally:
            for _, futures in decoding:
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def _load(self, sample_id: int, decode: Decode) -> tuple[Tensor, int]:
        sample = self._reader.read(sample_id)
        return decode(sample, sample_id), sample.label

    def _collate(self, ids: Ids, futures: list[Future[tuple[Tensor, int]]], size: int) -> Batch:
        loaded = [future.result() for future in futures]
        images = torch.empty((len(loaded), 3, size, size), dtype=torch.uint8, pin_memory=self._pin)
        for slot, (image, _) in zip(images, loaded, strict=True):
            slot.copy_(image)
        labels = torch.from_numpy(np.array([label for _, label in loaded], dtype=np.int64))
        return Batch(images, labels, ids)
