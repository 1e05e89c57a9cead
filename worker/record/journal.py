"""Event history and progress of an attempt, written by rank 0 for others to read.

Events go to `records/<attempt>/history/` at every commit, at the end and at intervals. They are
split into pieces, and only the last piece grows. `progress.json`, next to that folder, is replaced
every 30 seconds, and more often at first.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from worker.errors import Diverged, ExitCode, InfrastructureError, WorkerError
from worker.layout import history_name, progress_name
from worker.plain import plain
from worker.ranks.stop_signal import StopFlag
from worker.record.events import EndEvent, Event, StartEvent
from worker.record.progress import StepProgress
from worker.record.progress_record import ProgressRecord
from worker.redaction import redacted
from worker.store import Store
from worker.store.json_records import put_json

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 30.0
_FIRST_SECONDS = 3.0  # a user who has just started a job wants to see progress
_FLUSH_SECONDS, _FLUSH_SHARE = 60.0, 0.02  # limits an attempt to hundreds of timed writes
_LAST_WORD_SECONDS = 5.0
_PIECE_CHARACTERS = 1 << 18  # the last piece is uploaded again in full at every flush


class Journal:
    """The journal of an attempt; does nothing on ranks other than the leading one.

    Args:
        store: The output of the job.
        attempt: The number of the attempt.
        leads: Whether this is rank 0, which writes.
    """

    def __init__(self, store: Store, attempt: int, *, leads: bool) -> None:
        self._store = store
        self._attempt = attempt
        self._leads = leads
        self._events: list[Event] = []
        self._progress = ProgressRecord()
        self._piece = 1
        self._text = ""  # contents of the last piece
        # Taken in this order: `_writing` for a whole flush, as commits and the writer thread both
        # flush; `_lock` briefly, for the queue and the progress.
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._began = self._flushed = time.monotonic()
        self._thread = threading.Thread(target=self._write_regularly, name="journal", daemon=True)

    def begin(self, step: int, total_steps: int, world_size: int) -> None:
        """Record how the attempt starts, and start the writer thread.

        Args:
            step: The step that the attempt resumes from; 0 for a fresh start.
            total_steps: The total number of steps of the job.
            world_size: The number of ranks.
        """
        self._progress = ProgressRecord(total_steps=total_steps)
        self.note(StartEvent(attempt=self._attempt, step=step, world_size=world_size))
        if self._leads:
            self._thread.start()

    def note(self, event: Event) -> None:
        """Queue an event for the history, and update the progress."""
        if self._leads:
            with self._lock:
                self._events.append(event)
                self._progress = self._progress.after(event)

    def show(self, step: StepProgress) -> None:
        """Update the progress after a step; not every step becomes an event of the history."""
        if self._leads:
            with self._lock:
                self._progress = self._progress.at(step)

    def flush(self) -> None:
        """Write the queued events; if the store raises an error, they stay queued."""
        with self._writing:
            with self._lock:  # not held during the write: training must not wait for a request
                events = list(self._events)
            if not events:
                return
            text = self._text + "".join(map(_line_of, events))
            name = history_name(self._attempt, self._piece)
            # Writing the piece again after an error is harmless: it contains all of its earlier
            # text.
            self._store.put(name, text.encode())
            with self._lock:
                # Events noted during the write follow those written.
                del self._events[: len(events)]
            self._text = text
            if len(text) > _PIECE_CHARACTERS:
                self._piece, self._text = self._piece + 1, ""
            self._flushed = time.monotonic()

    def close(self, error: BaseException | None, seconds: float) -> None:
        """Record how the attempt ended, waiting at most `seconds` for the last write."""
        if not self._leads:
            return
        code = ExitCode.DONE if error is None else ExitCode.BUG
        code = error.code if isinstance(error, WorkerError) else code
        text = redacted(str(error)) if isinstance(error, WorkerError) else type(error).__name__
        end = EndEvent(
            code=int(code),
            text="" if error is None else text,
            diverged=isinstance(error, Diverged),
        )
        self.note(end)
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, min(seconds, _LAST_WORD_SECONDS)))

    def _write_regularly(self) -> None:
        while True:
            # Read the flag before writing, so that events queued before `close` are always written.
            last = self._closed.is_set()
            since, elapsed = time.monotonic() - self._flushed, time.monotonic() - self._began
            try:
                self._put_progress()
                # The first flush is immediate, so that the start is on record.
                # Longer runs flush less often, so that the number of writes stays small.
                interval = max(_FLUSH_SECONDS, _FLUSH_SHARE * elapsed)
                if last or (self._piece == 1 and not self._text) or since > interval:
                    self.flush()
            except InfrastructureError:  # a commit would hit it too, and end the attempt
                pass
            except WorkerError as error:
                log.warning("the attempt's history and progress cannot be written: %s", error)
            if last:
                return
            # More often at first, when somebody is likely to be watching.
            self._closed.wait(min(PROGRESS_SECONDS, max(_FIRST_SECONDS, elapsed / 4)))

    def _put_progress(self) -> None:
        with self._lock:
            progress = self._progress
        put_json(self._store, progress_name(self._attempt), _plain(progress.model_dump()))


def _line_of(event: Event) -> str:
    return json.dumps(_plain(asdict(event))) + "\n"


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    # `plain` keeps eight digits, which would round Unix time to the nearest 100 seconds.
    return {**plain(fields), "time": fields["time"]}


@contextmanager
def open_journal(store: Store, attempt: int, *, leads: bool, stop: StopFlag) -> Iterator[Journal]:
    """Open the journal of an attempt, and record how the attempt ends.

    Args:
        store: The output of the job.
        attempt: The number of the attempt.
        leads: Whether this is rank 0, which writes.
        stop: The stop flag, which limits the time for the last write.
    """
    journal = Journal(store, attempt, leads=leads)
    error: BaseException | None = None
    try:
        yield journal
    except BaseException as raised:
        error = raised
        raise
    finally:
        journal.close(error, stop.patience())
