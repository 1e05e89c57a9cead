"""The audit of the ledger, against plans that were cut short and taken up again."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.learners import ALONE
from tests.support.examples import examples
from tests.support.stores import keys
from worker.data.epoch_plan import EpochPlan
from worker.record import sample_ledger as record
from worker.record.ledger_audit import Piece, audit_epochs, read_ledger, surviving_rows
from worker.record.sample_ledger import Recorder
from worker.store import open_store

SAMPLES, BATCH = 50, 12
STEPS = 5


def rows(first: int, stop: int) -> np.ndarray:
    """What a right run trains on in steps [first, stop)."""
    found = []
    for step in range(first, stop):
        plan = EpochPlan(np.array([20, 30]), BATCH, seed=0, epoch=step // STEPS)
        ids = plan.batch(step % STEPS)
        found.append(np.stack([np.full_like(ids, step), ids], axis=1))
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


@examples(100)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=5))
def test_work_that_was_thrown_away_does_not_count(runs: list[tuple[int, int]]) -> None:
    pieces, committed = [], 0
    for attempt, (begin, length) in enumerate(runs, start=1):
        first = min(begin, committed)  # resumed from the newest valid commit, or from an older one
        stop = min(first + length, 15)
        pieces.append(Piece(attempt, first, rows(first, stop)))
        committed = stop
    pieces.append(Piece(99, committed, rows(committed, 15)))
    audits = audit_epochs(surviving_rows(pieces), SAMPLES, BATCH)
    assert [(a.epoch, a.trained, a.lost, a.repeated, a.complete) for a in audits] == [
        (epoch, SAMPLES, (), (), True) for epoch in range(3)
    ]


def test_a_lost_and_a_repeated_sample_are_named() -> None:
    whole = rows(0, 5)
    lost = whole[7, 1]
    whole[7] = (0, whole[9, 1])
    (audit,) = audit_epochs(whole, SAMPLES, BATCH)
    assert (audit.lost, audit.repeated) == ((lost,), (whole[9, 1],))


def test_samples_left_out_as_bad_are_not_lost() -> None:
    whole = rows(0, 5)
    bad = int(whole[7, 1])
    whole[7, 1] = -1 - bad
    (audit,) = audit_epochs(whole, SAMPLES, BATCH)
    assert (audit.lost, audit.repeated, audit.left_out) == ((), (), (bad,))
    assert (audit.trained, audit.faults, audit.whole) == (49, 0, False)
    again = np.concatenate([whole, [[0, bad]]])  # left out, and then trained on all the same
    (audit,) = audit_epochs(again, SAMPLES, BATCH)
    assert audit.repeated == (bad,)


def test_an_unfinished_epoch_has_lost_nothing_yet() -> None:
    audits = audit_epochs(rows(0, 7), SAMPLES, BATCH)
    assert [(audit.complete, audit.lost, audit.trained) for audit in audits] == [
        (True, (), 50),
        (False, (), 24),
    ]


def test_steps_that_were_committed_must_be_there() -> None:
    audits = audit_epochs(rows(0, 5), SAMPLES, BATCH, done=10)
    assert [(audit.complete, len(audit.lost)) for audit in audits] == [(True, 0), (True, 50)]


def test_the_recorder_writes_what_the_audit_reads(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    recorder = Recorder(store, attempt=2, rank=ALONE, step=3, share=2, samples=True)
    recorder.trained(3, np.array([5, 1, 0]), np.array([True, True, False]))
    recorder.trained(4, np.array([], dtype=np.int64), np.array([], dtype=bool))
    recorder.take(5)()
    recorder.take(5)()
    (piece,) = read_ledger(store)
    assert (piece.attempt, piece.first) == (2, 3)
    assert piece.rows.tolist() == [[3, 5], [3, 1], [3, -1]]


def test_the_ledger_of_many_commits_is_few_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_PIECE_BYTES", 16 * 40)
    store = open_store(str(tmp_path))
    recorder = Recorder(store, attempt=1, rank=ALONE, step=0, share=1, samples=True)
    for step in range(100):
        recorder.trained(step, np.array([step]), np.array([True]))
        recorder.take(step + 1)()
        assert len(np.concatenate([piece.rows for piece in read_ledger(store)])) == step + 1
    pieces = read_ledger(store)
    assert [piece.first for piece in pieces] == [0, 40, 80]
    assert surviving_rows(pieces).tolist() == [[step, step] for step in range(100)]


def test_evaluations_are_kept_where_they_are_the_last_or_the_best(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    recorder = Recorder(store, attempt=1, rank=ALONE, step=0, share=1, samples=False)
    rows = np.array([[0, 1, 3]])
    for step, best in ((5, None), (10, 5), (15, 10), (20, 10), (25, 10)):
        recorder.evaluated(step, rows, [], best)
    assert keys(store) == [
        *("records/000001/confusion/00000010.npy", "records/000001/confusion/00000025.npy"),
        *("records/000001/mistakes/00000010.json", "records/000001/mistakes/00000025.json"),
    ]
