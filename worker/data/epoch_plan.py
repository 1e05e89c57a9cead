"""Plan of an epoch: the samples of each global batch, from (counts, seed, epoch, step).

The epoch's permuted shards, laid end to end, are cut into lanes of equal length (give or take one
sample). Step t takes the next `batch_size / lanes` samples of every lane, and inside a lane the
samples are shuffled window by window. The numbers of ranks and loader threads only determine who
reads what, so the state of the stream is one integer, the step.

The last batch of an epoch holds the remaining samples: every sample is seen exactly once, nothing
is padded or dropped, and every rank takes part in every step (some without a sample if fewer remain
than there are ranks).
"""

import numpy as np
import numpy.typing as npt

from worker.numbers import ceil_div

Ids = npt.NDArray[np.int64]

COPY_BITS = 40
"""The bits of a draw below the number of the copy; an index has fewer samples than that."""
_LANES = 32
# The streams of the keyed hash keep the order of the shards independent of that of the samples.
_SHARDS, _SAMPLES = 0, 1


def keyed_hash(*words: "int | npt.ArrayLike") -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits per element, identical on every machine and numpy version.

    Chains the finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
    generators", 2014) over `words`, which are broadcast together. The result has the broadcast
    shape, at least [1].
    """
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def keyed_uniform(count: int, seed: int, epoch: int, ids: Ids) -> npt.NDArray[np.float64]:
    """Return uniform numbers that are fixed by (seed, epoch, sample id).

    Args:
        count: The number of values per sample.
        seed: The job's seed.
        epoch: The epoch, from 0.
        ids: Sample ids, [samples].

    Returns:
        float64 [samples, count], in [0, 1).
    """
    # A double has 53 bits of precision, so the upper 53 of the 64 bits give evenly spaced values,
    # and rounding can never yield 1.
    bits = keyed_hash(seed, epoch, ids[:, None], np.arange(count))
    return (bits >> np.uint64(11)) / 2**53


def sample_ids(draws: Ids) -> Ids:
    """Return the samples of draws, where an epoch may draw one sample several times.

    The first draw of a sample is its id; the others have the number of the copy in their high bits,
    so that each is augmented in its own way.
    """
    ids: Ids = draws & ((1 << COPY_BITS) - 1)
    return ids


def lay_out(multiplicity: Ids, ends: Ids) -> tuple[Ids, Ids]:
    """Return an order of all draws of an epoch, for `EpochPlan`.

    Second draws of a shard's samples form a shard of their own, and so on: as shards are permuted,
    the copies of a sample spread over the epoch.

    Args:
        multiplicity: How often each sample is drawn, [samples].
        ends: The id that follows the last sample of each shard, [shards].

    Returns:
        The number of draws in each of these shards, and all draws in their order.
    """
    ids = np.repeat(np.arange(len(multiplicity)), multiplicity)
    first = np.cumsum(multiplicity) - multiplicity
    copies = np.arange(len(ids)) - first[ids]
    parts = copies * len(ends) + np.searchsorted(ends, ids, side="right")
    order = np.argsort(parts, kind="stable")  # ids are ascending, and stay so within a part
    bounds = np.flatnonzero(np.diff(parts[order], prepend=-1))
    counts = np.diff(bounds, append=len(ids))
    return counts, (copies << COPY_BITS | ids)[order]


def split(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return a rank's share of some items; shares differ by at most one, and rank 0 has the most.

    Args:
        total: The number of items.
        rank: The rank.
        world_size: The number of ranks.

    Returns:
        The slice [start, stop) of `rank`.
    """
    return ceil_div(rank * total, world_size), ceil_div((rank + 1) * total, world_size)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of global batches in an epoch, including a smaller last one."""
    return ceil_div(samples, batch_size)


def default_lanes(batch_size: int) -> int:
    """Return the largest divisor of the batch size up to 32, or up to 1/16 of it if that is more.

    Ranks own lanes, so even with many ranks, and hence large batches, each reads few shards.
    """
    most = max(_LANES, batch_size // 16)
    return max(lanes for lanes in range(1, most + 1) if batch_size % lanes == 0)


class EpochPlan:
    """The global batches of one epoch.

    Sample ids number the samples in index order. Memory is O(shards), or O(samples) with `draws`,
    and every step costs the same.

    Args:
        counts: Number of samples in each shard, int64 [shards].
        batch_size: Number of samples in a global batch.
        seed: The job's seed.
        epoch: The epoch, from 0.
        lanes: Number of lanes, a divisor of the batch size; None for the default.
        window: Number of samples of a lane that are shuffled together.
        draws: The draws in the order of `counts`; None if each sample is drawn once. See `lay_out`.
    """

    def __init__(
        self,
        counts: Ids,
        batch_size: int,
        seed: int,
        *,
        epoch: int,
        lanes: int | None = None,
        window: int = 32,
        draws: Ids | None = None,
    ) -> None:
        self._draws = draws
        self.total = int(counts.sum())
        self.steps = steps_per_epoch(self.total, batch_size)
        self._batch_size = batch_size
        self._lanes = lanes or default_lanes(batch_size)
        if batch_size % self._lanes:
            raise ValueError(f"{self._lanes} lanes do not divide a batch of {batch_size}")
        self._per_lane = batch_size // self._lanes
        self._window = window
        self._key = (seed, epoch)
        # Sorting by random keys permutes the shards; `stable` makes even equal keys come out in the
        # same order with every version of numpy.
        order = np.argsort(keyed_hash(*self._key, _SHARDS, np.arange(len(counts))), kind="stable")
        self._ends = np.cumsum(counts[order])
        # Position p lies in the first permuted shard whose end is beyond p. Ids number samples in
        # index order, so a shard's samples keep their offset from its first id: adding `_shift` to
        # p yields the id.
        self._shift = np.cumsum(counts)[order] - self._ends
        # Lanes are consecutive; their lengths differ by at most one.
        bounds = np.arange(self._lanes + 1) * self.total // self._lanes
        self._starts, self._lengths = bounds[:-1], np.diff(bounds)

    def size(self, step: int) -> int:
        """Return the number of samples in the global batch of `step`."""
        return min(self._batch_size, self.total - step * self._batch_size)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Ids:
        """Return the samples of one rank's part of a global batch, in order.

        The ranks' parts, joined in rank order, are the global batch.

        Args:
            step: The step within the epoch, from 0.
            rank: The rank.
            world_size: The number of ranks.

        Returns:
            Draws; see `sample_ids`.

        Raises:
            IndexError: The step is outside the epoch.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside an epoch of {self.steps} steps")
        # Each lane contributes `per_lane` samples, or, in the last step, what remains of it.
        taken = np.clip(self._lengths - step * self._per_lane, 0, self._per_lane)
        ends = np.cumsum(taken)
        start, stop = split(int(ends[-1]), rank, world_size)
        if start == stop:
            return np.empty(0, dtype=np.int64)
        # Compute only the lanes that this rank's part of the batch comes from.
        # side="right" skips lanes that contribute nothing, whose end equals that of the lane
        # before.
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        lanes = np.arange(first, last + 1)
        positions = self._positions(lanes, step)
        offset = int(ends[first] - taken[first])
        return self._ids(positions[start - offset : stop - offset])

    def shards(self, rank: int = 0, world_size: int = 1) -> int:
        """Return how many shards `rank` reads in this epoch, not counting the last batch."""
        # A full batch takes `per_lane` samples of each lane, so a share of it maps to lanes by
        # division.
        start, stop = split(self._batch_size, rank, world_size)
        if start == stop:
            return 0
        first, last = start // self._per_lane, (stop - 1) // self._per_lane
        low, high = int(self._starts[first]), int(self._starts[last] + self._lengths[last])
        if low == high:
            return 0
        places = np.searchsorted(self._ends, [low, high - 1], side="right")
        return int(places[1] - places[0]) + 1

    def _positions(self, lanes: Ids, step: int) -> Ids:
        """Return the positions in the permuted shards that `step` takes from `lanes`, by lane."""
        # A step takes [low, high) of every lane, which may span two or more windows.
        low = step * self._per_lane
        high = low + self._per_lane
        windows = range(low // self._window, (high - 1) // self._window + 1)
        shuffled = np.concatenate([self._shuffle(lanes, number) for number in windows], axis=1)
        first = windows[0] * self._window
        inside = shuffled[:, low - first : high - first]
        # Drop the offsets beyond the end of a lane; some lanes are one sample shorter. The mask
        # flattens row by row, so the result is ordered by lane.
        return (self._starts[lanes, None] + inside)[inside < self._lengths[lanes, None]]

    def _shuffle(self, lanes: Ids, number: int) -> Ids:
        """Return window `number` of each lane as shuffled offsets, shape [lanes, window].

        Offsets beyond a lane's end sort last.
        """
        offsets = number * self._window + np.arange(self._window)
        keys = keyed_hash(*self._key, _SAMPLES, lanes[:, None], offsets[None, :])
        # No samples exist beyond the end of a lane; the largest key sorts those offsets last.
        keys[offsets[None, :] >= self._lengths[lanes, None]] = np.iinfo(np.uint64).max
        return offsets[np.argsort(keys, axis=1, kind="stable")]

    def _ids(self, positions: Ids) -> Ids:
        place = np.searchsorted(self._ends, positions, side="right")
        ids: Ids = positions + self._shift[place]
        return ids if self._draws is None else self._draws[ids]
