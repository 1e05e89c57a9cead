"""A journal writes by itself, and later if it cannot now."""

import json
import time
from pathlib import Path

import pytest

from tests.support.progress import progress_at
from tests.support.stores import keys
from worker.errors import InfrastructureError, StopRequested
from worker.layout import progress_name
from worker.record import journal as journals
from worker.record.events import EvaluationEvent, StartEvent
from worker.record.history import read_history
from worker.record.journal import Journal
from worker.store import open_store


def test_what_cannot_be_written_now_is_written_later(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    journal = Journal(store, 1, leads=False)  # without its thread
    journal._leads = True
    journal.note(StartEvent(attempt=1, step=0, world_size=1))
    real, calls = store.put, []

    def fail(key: str, data: bytes) -> None:
        calls.append(key)
        raise InfrastructureError("down")

    store.put = fail  # type: ignore[method-assign]
    with pytest.raises(InfrastructureError):
        journal.flush()
    store.put = real  # type: ignore[method-assign]
    nowhere = float("nan")
    journal.note(EvaluationEvent(epoch=1, step=1, loss=nowhere, accuracy=0.5, top5_accuracy=None))
    journal.flush()
    journal.flush()
    assert calls
    (piece,) = [key for key in keys(store) if "history" in key]
    events = [json.loads(line) for line in store.get(piece).splitlines()]
    assert [event["event"] for event in events] == ["start", "evaluation"]
    assert events[1]["loss"] is None


def test_a_journal_writes_by_itself_and_says_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_FIRST_SECONDS", 0.02)
    monkeypatch.setattr(journals, "_LAST_WORD_SECONDS", 60.0)
    store = open_store(str(tmp_path))
    journal = Journal(store, 4, leads=True)
    journal.begin(0, 10, 1)
    journal.show(progress_at(3))
    deadline = time.monotonic() + 60
    while not [key for key in keys(store) if "history" in key] or b'"step": 3' not in store.get(
        progress_name(4)
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    journal.close(StopRequested("asked to"), 60)
    end = json.loads(store.get(progress_name(4)))["end"]
    assert end == {"code": 75, "text": "asked to"}
    (part,) = read_history(store).parts
    assert part.end and part.end.code == 75


def test_a_journal_of_another_rank_writes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    journal = Journal(store, 1, leads=False)
    journal.begin(0, 10, 1)
    journal.flush()
    journal.close(None, 5)
    assert not keys(store)
