"""The multiplicity of each sample: a pure function of (key, group, label, seed, epoch).

Leave-out lists, folds, shares and balance are all settings of this function: 0 for a sample that is
left out, 1 for one that is seen as usual, more for one that is repeated. Exactness, seek, resume
and audit follow from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from worker.data.epoch_plan import Ids, keyed_hash
from worker.data.sample_table import SampleTable

# The streams of the keyed hash keep the draws independent of each other.
_FOLD, _SHARE, _TURN = 21, 22, 23


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A division of the samples into folds, by group."""

    of: int
    """The number of folds."""
    hold: int
    """The fold that is held out of training, from 0."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings that determine how often each sample is seen."""

    balance: float = 0.0
    """0: each sample once; 1: all classes equally often; values between: a compromise."""
    fold: Fold | None = None
    """The fold that is held out; None to train on all."""
    share: float = 1.0
    """Share of each class that is used."""
    without: Mapping[int, str] = field(default_factory=dict)
    """The samples that are left out: hash and text of their keys."""

    @property
    def is_plain(self) -> bool:
        """Whether each sample is seen exactly once."""
        return not (self.balance or self.fold or self.share < 1 or self.without)


def kept(table: SampleTable, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """Return which samples are not on the leave-out list, [samples]."""
    left_out = np.fromiter(sampling.without, np.uint64, len(sampling.without))
    return ~np.isin(table["key"], left_out)


def held_out(table: SampleTable, sampling: Sampling) -> Ids:
    """Return the ids of the samples in the fold that is held out, except those left out."""
    return np.flatnonzero(kept(table, sampling) & _in_fold(table, sampling.fold))


class Multiplicities:
    """The number of times that each epoch sees each sample.

    An epoch always has as many places as there are samples to train on. Class c, with n_c of the
    N samples, gets T_c of the places, in proportion to n_c^(1 - balance). Its samples take turns
    in a fixed random order, so after any number of epochs, no two samples of a class differ by more
    than one in how often they were seen.

    Memory is 20 bytes per sample for the life of the job.

    Args:
        table: The sample table.
        classes: The number of classes.
        sampling: The settings.
        seed: The job's seed.
    """

    def __init__(self, table: SampleTable, classes: int, sampling: Sampling, seed: int) -> None:
        usable = kept(table, sampling) & ~_in_fold(table, sampling.fold)
        self._samples = len(table)
        ids, turns, counts = _ranked(table, usable, classes, (seed, _SHARE))
        if sampling.share < 1:
            # Of each class, those with the smallest hashes, so that a larger share contains a
            # smaller one; at least one of each class.
            quota = np.ceil(np.round(counts * sampling.share, 9)).astype(np.int64)
            usable[ids[turns >= quota[table["label"][ids]]]] = False
        self.ids, self._turns, counts = _ranked(table, usable, classes, (seed, _TURN))
        self._labels = table["label"][self.ids]
        self._counts = counts
        self.per_epoch = int(counts.sum())
        """The number of places in an epoch, which is the number of samples to train on."""
        self.class_places = _places(counts, sampling.balance)
        """The number of places of each class in an epoch, int64 [classes]."""

    def of_epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return how often an epoch, counted from 0, sees each sample, int64 [samples]."""
        # The sample with turn p of a class of n samples takes the places p, p + n, p + 2n, … of all
        # the places that the class has in the course of the job; the epoch's are [e·T, (e+1)·T).
        places, counts = self.class_places[self._labels], self._counts[self._labels]
        first = epoch * places
        taken = _ceil_div(first + places - self._turns, counts)
        taken -= _ceil_div(first - self._turns, counts)
        result = np.zeros(self._samples, np.int64)
        result[self.ids] = taken
        return result


def _in_fold(table: SampleTable, fold: Fold | None) -> npt.NDArray[np.bool_]:
    if fold is None:
        return np.zeros(len(table), np.bool_)
    # By group only, and with no seed: the folds of a data set are the same in every run, and no
    # sample moves if others are added.
    return keyed_hash(_FOLD, table["group"]) % np.uint64(fold.of) == fold.hold


def _ranked(
    table: SampleTable, usable: npt.NDArray[np.bool_], classes: int, key: tuple[int, int]
) -> tuple[Ids, Ids, Ids]:
    """Number the usable samples of each class, in random order.

    Args:
        table: The sample table.
        usable: Which samples to number, [samples].
        classes: The number of classes.
        key: Seed and stream of the order.

    Returns:
        The ids of the usable samples, the number of each within its class from 0, and the number
        of usable samples by class.
    """
    ids = np.flatnonzero(usable)
    labels = table["label"][ids]
    # By class, then by hash; equal keys of different samples are distinguished by their ids.
    order = np.lexsort((keyed_hash(*key, table["key"][ids], ids), labels))
    ids = ids[order]
    counts = np.bincount(labels, minlength=classes).astype(np.int64)
    starts = np.cumsum(counts) - counts
    return ids, np.arange(len(ids)) - starts[labels[order]], counts


def _places(counts: Ids, balance: float) -> Ids:
    """Divide an epoch's places among the classes; every class with samples gets at least one."""
    total = int(counts.sum())
    present = counts > 0
    if not balance or not total:
        return counts
    weights = np.where(present, counts.astype(np.float64) ** (1 - balance), 0.0)
    exact = (total - present.sum()) * weights / weights.sum()
    places = np.floor(exact).astype(np.int64) + present
    # The largest remainders get what rounding down has left over; ties go to the first classes.
    order = np.argsort(places - present - exact, kind="stable")
    places[order[: total - int(places.sum())]] += 1
    return places


def _ceil_div(numbers: Ids, divisors: Ids) -> Ids:
    result: Ids = -(-numbers // divisors)
    return result
