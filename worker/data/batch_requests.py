"""A rank's requests for batches, in a form that its processes can divide among themselves."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from worker.data.epoch_plan import Ids, split
from worker.data.loader import Batch, Prepare
from worker.data.reader import Reader


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for the batches of a training epoch, or for samples prepared for evaluation.

    It fully determines its batches, so it can be sent to a process that was forked earlier.
    """

    dataset: str
    """Name of the data set: `train` or `val`."""
    epoch: int = 0
    """The epoch, from 0."""
    start: int = 0
    """Step within the epoch to start from."""
    samples: Sequence[int] | Ids | None = None
    """Ids of the samples to be evaluated, in order; None in training."""
    keyed: bool = False
    """Whether the batches are to have the keys of their samples."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A request resolved into its batches and their preparation."""

    batches: Iterable[Ids]
    """Sample ids of each batch."""
    prepare_for: Callable[[Ids], Prepare]
    """Returns the function that prepares the images of a batch."""
    size: int | None = None
    """Side of the images in pixels; None for the largest one that there is room for."""
    lead: int = 0
    """Number of extra samples at the start of every batch, from the preceding rank's part."""
    in_order: bool = False
    """True if samples are read in the order in which the shards store them."""

    def places(self, ids: Ids, part: int, parts: int, reader: Reader) -> Ids:
        """Return the positions in a batch that one of several processes fills.

        Training takes a few samples from every lane in turn, so each process gets its own lanes.
        Samples read in order are divided up by run: a stretch of a shard that is fetched in one
        piece. Either way, no two processes fetch the same data, except for lanes at the boundaries.

        Args:
            ids: Sample ids of the batch.
            part: Index of the process.
            parts: The number of processes.
            reader: The reader, which knows the runs.

        Returns:
            Indices into `ids`.
        """
        if self.in_order:
            # A run goes to the same process in every batch, so one that spans two batches is
            # fetched by one process only.
            return np.flatnonzero(reader.runs(ids) % parts == part)
        # The lead precedes the lanes, so it must not shift their division; process 0 takes it.
        lead = min(self.lead, len(ids))
        start, stop = split(len(ids) - lead, part, parts)
        return np.arange(start + lead if part else 0, stop + lead)


class Batches(Protocol):
    """A source of batches, which reads and decodes those of a request."""

    def batches(self, request: Request) -> Generator[Batch]:
        """Yield the batches in order; each is overwritten once two more have been requested.

        Bad samples leave holes. Raises the store's errors at the batch to which they belong.
        """

    def close(self) -> None:
        """Stop reading."""
