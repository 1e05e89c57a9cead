"""Requests of a rank for batches, in a form that each of its processes can do a part of."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from worker.data.epoch_plan import Ids, split
from worker.data.loader import Batch, Prepare
from worker.data.reader import SampleReader


@dataclass(frozen=True, kw_only=True)
class Request:
    """The batches of a training epoch, or some samples of a data set as evaluation sees them.

    All batches follow from it, so that it can be sent to a process that was forked earlier.
    """

    dataset: str
    """Name of the data set: `train` or `val`."""
    epoch: int = 0
    """The epoch, from 0."""
    start: int = 0
    """Step within the epoch."""
    samples: Sequence[int] | None = None
    """Ids of the samples to be evaluated, in order; None in training."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A request in full."""

    batches: Iterable[Ids]
    """Sample ids of each batch."""
    prepare_for: Callable[[Ids], Prepare]
    """Returns how the images of a batch are prepared."""
    lead: int = 0
    """Samples at the head of every batch that belong to the part before it."""
    in_order: bool = False
    """True if samples are taken in the order in which they lie in the shards."""

    def places(self, ids: Ids, part: int, parts: int, reader: SampleReader) -> Ids:
        """Return the places of a batch that one of several processes fills.

        Training takes a few samples of every lane in turn, so each process gets lanes of its own.
        What is read in order is divided by the runs in which it is fetched. Either way nothing is
        fetched by two of them, except for lanes or runs at the seams.

        Args:
            ids: Sample ids of the batch.
            part: Index of the process.
            parts: The number of processes.
            reader: The reader, which knows the runs.

        Returns:
            Indices into `ids`.
        """
        if self.in_order:
            return np.flatnonzero(reader.runs(ids) % parts == part)
        lead = min(self.lead, len(ids))
        start, stop = split(len(ids) - lead, part, parts)
        return np.arange(start + lead if part else 0, stop + lead)


class Batches(Protocol):
    """Reads and decodes the batches of requests."""

    def batches(self, request: Request) -> Generator[Batch]:
        """The batches in order; one is overwritten once the second after it is asked for.

        Bad samples leave holes. Raises what the store raises, at the batch that it belongs to.
        """

    def close(self) -> None:
        """Stop reading."""
