"""A data set as a job uses it: all of its samples, or some of them."""

from dataclasses import dataclass

import numpy as np
import xxhash

from worker.data.epoch_plan import Ids
from worker.data.index import Index
from worker.store import Store


@dataclass(frozen=True)
class Dataset:
    """A data set: its shards, their index, and the samples of it that are used."""

    store: Store
    """Store that holds the shards."""
    index: Index
    """Index of the shards."""
    ids: Ids | None = None
    """Ids of the samples to evaluate on, in ascending order; None for all."""

    @property
    def samples(self) -> int:
        """The number of samples that are used."""
        return self.index.samples if self.ids is None else len(self.ids)

    @property
    def identity(self) -> str:
        """The identity of these samples, for records and messages."""
        if self.ids is None:
            return self.index.identity
        digest = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(self.ids, dtype="<i8").tobytes())
        return f"{self.index.identity}, {self.samples} of its samples ({digest[:8]})"

    def share(self, numbers: range) -> Ids:
        """Return the ids of samples by their number among those that are used."""
        if self.ids is None:
            return np.arange(numbers.start, numbers.stop)
        return self.ids[numbers.start : numbers.stop]
