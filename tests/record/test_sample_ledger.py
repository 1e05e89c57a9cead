"""The ledger is what the audit reads, in few objects."""

from pathlib import Path

import numpy as np
import pytest

from bench.learners import ALONE
from worker.record import sample_ledger as record
from worker.record.ledger_audit import read_ledger, surviving_rows
from worker.record.sample_ledger import Recorder
from worker.store import open_store


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
