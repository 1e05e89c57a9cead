"""Audit of a run's ledger: whether each epoch trained on each sample as often as planned."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.array_files import load_array
from worker.checkpoint.claim import AttemptRecord, attempt_numbers, first_whole
from worker.data.epoch_plan import Ids, steps_per_epoch
from worker.data.index import Index
from worker.errors import ConfigurationError, DataError, WorkerError
from worker.layout import LEDGER, RECORDS
from worker.numbers import ceil_div
from worker.store import Store
from worker.store.sweep_hint import sweep_hint

Rows = npt.NDArray[np.int64]

_SHOWN = 10


@dataclass(frozen=True)
class LedgerPart:
    """A part of the ledger: the samples of some ranks of an attempt."""

    attempt: int
    """The number of the attempt."""
    first: int
    """The first step in this part."""
    rows: Rows
    """Rows of (step, sample id)."""


@dataclass(frozen=True, kw_only=True)
class EpochAudit:
    """The audit of an epoch."""

    epoch: int
    """The epoch, from 0."""
    trained: int
    """The number of samples that were trained on."""
    lost: tuple[int, ...]
    """Ids of the samples that appear less often than planned, whether trained on or left out."""
    repeated: tuple[int, ...]
    """Ids of the samples that appear more often than planned, whether trained on or left out."""
    complete: bool
    """Whether the epoch was finished."""
    left_out: tuple[int, ...] = ()
    """Ids of the samples that were planned but left out as bad."""

    @property
    def whole(self) -> bool:
        """Return whether the epoch is finished, with no sample lost, repeated or left out."""
        return self.complete and not self.faults and not self.left_out

    @property
    def faults(self) -> int:
        """The number of samples lost or repeated."""
        return len(self.lost) + len(self.repeated)


def read_ledger(store: Store) -> list[LedgerPart]:
    """Return all parts of a run's ledger; raises `ConfigurationError` if there are none."""
    pieces = []
    for info in store.list(RECORDS):
        match = LEDGER.fullmatch(info.key)
        if match:
            rows = _read_rows(store, info.key)
            attempt, first, _ = map(int, match.groups())
            pieces.append(LedgerPart(attempt, first, rows))
    if not pieces:
        raise ConfigurationError(
            f"{store.uri}: holds no sample ledger; train with `record: {{samples: true}}`"
        )
    return pieces


def _read_rows(store: Store, key: str) -> Rows:
    """Return the rows of a ledger object, int64 [n, 2]; raises `DataError` if it is damaged."""
    try:
        rows: Rows = load_array(store.get(key))
    except WorkerError:
        raise
    except Exception:  # on arbitrary bytes, numpy's parsers may raise anything
        rows = np.empty(0, dtype=np.int64)
    sound = isinstance(rows, np.ndarray) and rows.dtype == np.int64 and rows.ndim == 2
    if not sound or rows.shape[1] != 2 or (rows[:, 0] < 0).any():
        raise DataError(f"{store.uri}{key}: is damaged, so the run cannot be audited")
    return rows


def read_last_attempt(store: Store) -> AttemptRecord:
    """Return the newest intact attempt record; raises `ConfigurationError` if there is none."""
    record = first_whole(store, attempt_numbers(store)[::-1])
    if record is None:
        raise ConfigurationError(
            f"{store.uri}: holds no run; "
            f"{sweep_hint(store, 'pass the output of a job that has been started')}"
        )
    return record


def require_same_data(store: Store, index: Index, kept: str | None) -> None:
    """Raise an error if the data is not what the run was trained on.

    Args:
        store: The output of the job.
        index: The index of the data.
        kept: The identity of the run's data; None if none was recorded.

    Raises:
        ConfigurationError: If the data is not the run's own.
    """
    if kept != index.identity:
        raise ConfigurationError(
            f"data.train: is now {index.identity}, but the run {store.uri} "
            f"{f'used {kept}' if kept else 'recorded none'}; audit it with the data that it used"
        )


def require_same_sampling(store: Store, sampling: str, identity: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` if the leave-out list is no longer the one that the run used.

    Args:
        store: The output of the job.
        sampling: The sampling settings, as text.
        identity: The identity that the run has recorded.

    Raises:
        ConfigurationError: If they differ from those of the run.
    """
    recorded = identity.get("data.sampling", sampling)
    if recorded != sampling:
        raise ConfigurationError(
            f"data.without: is now {sampling!r}, but the run {store.uri} used {recorded!r}; "
            "audit it with the list that it used"
        )


def require_known_rows(rows: Rows, samples: int, steps: int, uri: str) -> None:
    """Raise an error if the rows name samples or steps that the job does not have.

    Args:
        rows: Rows of the ledger.
        samples: The number of samples.
        steps: The number of steps.
        uri: The address of the ledger, for the message.

    Raises:
        DataError: If a row is out of bounds.
    """
    ids = np.where(rows[:, 1] < 0, -1 - rows[:, 1], rows[:, 1])
    if (ids >= samples).any() or (rows[:, 0] >= steps).any():
        raise DataError(f"{uri}: the ledger names samples or steps that the job does not have")


def surviving_rows(pieces: Iterable[LedgerPart]) -> Rows:
    """Return the rows that contributed to the final weights.

    When an attempt starts, everything that earlier attempts did from its first step on is
    discarded.
    """
    kept = []
    # From the newest attempt to the oldest: `limit` is the lowest step at which any newer attempt
    # began.
    limit = np.iinfo(np.int64).max
    by_attempt: dict[int, list[LedgerPart]] = {}
    for piece in pieces:
        by_attempt.setdefault(piece.attempt, []).append(piece)
    for attempt in sorted(by_attempt, reverse=True):
        rows = np.concatenate([piece.rows for piece in by_attempt[attempt]])
        kept.append(rows[rows[:, 0] < limit])
        limit = min(limit, *(piece.first for piece in by_attempt[attempt]))
    return np.concatenate(kept)


def audit_epochs(
    rows: Rows, planned_of: Callable[[int], Ids], batch_size: int, done: int = 0
) -> list[EpochAudit]:
    """Count how often each epoch trained on each sample.

    Args:
        rows: Rows of the ledger.
        planned_of: Returns how often an epoch is to see each sample, [samples].
        batch_size: The number of images in a global batch.
        done: The number of steps that the run has committed; the ledger must cover all of them.

    Returns:
        The audit of each epoch; in an unfinished one, only repeated samples are faults.
    """
    expected = planned_of(0)  # every epoch has as many places as the first
    steps = steps_per_epoch(int(expected.sum()), batch_size)
    done = max(done, int(rows[:, 0].max(initial=-1)) + 1)
    audits = []
    for epoch in range(ceil_div(done, steps)):
        # An id that was left out is stored as -1 - id, so that 0 has a negative form as well.
        planned = rows[rows[:, 0] // steps == epoch, 1]
        left_out = -1 - planned[planned < 0]
        ids = planned[planned >= 0]
        # Samples left out count as well: they are not lost, and one that appears again is repeated.
        expected = planned_of(epoch)
        counts = np.bincount(np.concatenate([ids, left_out]), minlength=len(expected))
        complete = done >= (epoch + 1) * steps
        lost = np.flatnonzero(counts < expected) if complete else np.empty(0, dtype=np.int64)
        repeated = np.flatnonzero(counts > expected)
        lists = [tuple(found.tolist()) for found in (lost, repeated, np.sort(left_out))]
        audits.append(
            EpochAudit(
                epoch=epoch,
                trained=len(ids),
                lost=lists[0],
                repeated=lists[1],
                complete=complete,
                left_out=lists[2],
            )
        )
    return audits


def describe_audit(audits: Iterable[EpochAudit], index: Index, samples: int) -> list[str]:
    """Return a line per stretch of flawless epochs, and one or more for each of the others.

    Args:
        audits: The audits, in the order of the epochs.
        index: The index of the training set.
        samples: The number of samples that an epoch is to train on, each copy counted.
    """
    lines = []
    for whole, group in itertools.groupby(audits, lambda audit: audit.whole):
        epochs = list(group)
        first, last = epochs[0].epoch + 1, epochs[-1].epoch + 1
        if whole:
            name = f"epoch {first}" if first == last else f"epochs {first} to {last}"
            lines.append(f"{name}: {samples} of {samples} samples trained on, 0 lost, 0 repeated")
            continue
        for audit in epochs:
            lines.append(
                f"epoch {audit.epoch + 1}: {audit.trained} of {samples} samples trained on, "
                f"{len(audit.lost)} lost, {len(audit.repeated)} repeated"
                + (f", {len(audit.left_out)} left out as bad" if audit.left_out else "")
                + ("" if audit.complete else "; not finished")
            )
            for kind in ("lost", "repeated", "left_out"):
                ids = getattr(audit, kind)
                if ids:
                    names = [_name(number, index) for number in ids[:_SHOWN]]
                    more = " …" if len(ids) > _SHOWN else ""
                    lines.append(f"  {kind.replace('_', ' ')}: {', '.join(names)}{more}")
    return lines


def _name(number: int, index: Index) -> str:
    shard, place = index.locate(number)
    return f"{number} ({index.shards[shard].name}, sample {place})"
