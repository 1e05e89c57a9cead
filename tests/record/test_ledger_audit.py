"""The audit names lost and repeated samples."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.ledger_rows import BATCH, SAMPLES, once, rows
from worker.numbers import ceil_div
from worker.record.ledger_audit import LedgerPart, audit_epochs, surviving_rows


@examples(100)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=5))
def test_work_that_was_thrown_away_does_not_count(runs: list[tuple[int, int]]) -> None:
    pieces, committed = [], 0
    for attempt, (begin, length) in enumerate(runs, start=1):
        first = min(begin, committed)  # resumed from the newest valid commit, or from an older one
        stop = min(first + length, 15)
        pieces.append(LedgerPart(attempt, first, rows(first, stop)))
        committed = stop
    pieces.append(LedgerPart(99, committed, rows(committed, 15)))
    audits = audit_epochs(surviving_rows(pieces), once, BATCH)
    assert [(a.epoch, a.trained, a.lost, a.repeated, a.complete) for a in audits] == [
        (epoch, SAMPLES, (), (), True) for epoch in range(3)
    ]


def test_a_lost_and_a_repeated_sample_are_named() -> None:
    whole = rows(0, 5)
    lost = whole[7, 1]
    whole[7] = (0, whole[9, 1])
    (audit,) = audit_epochs(whole, once, BATCH)
    assert (audit.lost, audit.repeated) == ((lost,), (whole[9, 1],))


def test_samples_left_out_as_bad_are_not_lost() -> None:
    whole = rows(0, 5)
    bad = int(whole[7, 1])
    whole[7, 1] = -1 - bad
    (audit,) = audit_epochs(whole, once, BATCH)
    assert (audit.lost, audit.repeated, audit.left_out) == ((), (), (bad,))
    assert (audit.trained, audit.faults, audit.whole) == (49, 0, False)
    again = np.concatenate([whole, [[0, bad]]])  # left out, and then trained on all the same
    (audit,) = audit_epochs(again, once, BATCH)
    assert audit.repeated == (bad,)


def test_an_empty_ledger_has_lost_every_sample() -> None:
    (audit,) = audit_epochs(np.empty((0, 2), np.int64), once, BATCH, done=ceil_div(SAMPLES, BATCH))
    assert len(audit.lost) == SAMPLES


def test_an_unfinished_epoch_has_lost_nothing_yet() -> None:
    audits = audit_epochs(rows(0, 7), once, BATCH)
    assert [(audit.complete, audit.lost, audit.trained) for audit in audits] == [
        (True, (), 50),
        (False, (), 24),
    ]


def test_steps_that_were_committed_must_be_there() -> None:
    audits = audit_epochs(rows(0, 5), once, BATCH, done=10)
    assert [(audit.complete, len(audit.lost)) for audit in audits] == [(True, 0), (True, 50)]
