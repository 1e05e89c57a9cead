"""The history of an attempt, and where it stands: written by rank 0 as it goes, for others to read.

`records/<attempt>/history/` gets events at every commit, at the end and in between, in pieces of
which only the last one grows; `progress.json` beside it is replaced every half minute, at first
more often.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from worker.errors import ExitCode, InfrastructureError, WorkerError
from worker.layout import history_name, progress_name
from worker.plain import plain
from worker.ranks.stop_signal import StopFlag
from worker.record.events import EndEvent, Event, StartEvent
from worker.redaction import redacted
from worker.store import Store

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 30.0
_FIRST_SECONDS = 3.0  # a user who has just started a job wants to see progress
_FLUSH_SECONDS, _FLUSH_SHARE = 60.0, 0.02  # pieces, and so requests of a reader, stay some hundreds
_LAST_WORD_SECONDS = 5.0
_PIECE_CHARACTERS = 1 << 18


class Journal:
    """The journal of an attempt; for a rank that does not lead, it keeps and writes nothing."""

    def __init__(self, store: Store, attempt: int, *, leads: bool) -> None:
        self._store = store
        self._attempt = attempt
        self._leads = leads
        self._events: list[Event] = []
        self._standing: dict[str, Any] = {}
        self._piece = 1
        self._text = ""  # what the last piece holds
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._began = self._flushed = time.monotonic()
        self._thread = threading.Thread(target=self._write_regularly, name="journal", daemon=True)

    def begin(self, step: int, total_steps: int, world_size: int) -> None:
        """Note how the attempt starts, and begin to write.

        Args:
            step: The step that it resumes from; 0 at first.
            total_steps: The steps of the job.
            world_size: The number of ranks.
        """
        self.note(StartEvent(attempt=self._attempt, step=step, world_size=world_size))
        self.stand(
            attempt=self._attempt,
            step=step,
            world_size=world_size,
            total_steps=total_steps,
            committed=step,
        )
        if self._leads:
            self._thread.start()

    def note(self, event: Event) -> None:
        """Note an event for the history."""
        if self._leads:
            with self._lock:
                self._events.append(event)

    def stand(self, **fields: Any) -> None:
        """Note where the attempt stands; of each field, what was said last counts."""
        if self._leads:
            with self._lock:
                self._standing |= {**plain(fields), "time": round(time.time(), 3)}

    def flush(self) -> None:
        """Write the events noted so far; raises what the store raises, and then keeps them."""
        with self._writing:
            with self._lock:  # and not while it writes: training is not to wait for a request
                events = list(self._events)
            if not events:
                return
            text = self._text + "".join(map(_line_of, events))
            name = history_name(self._attempt, self._piece)
            self._store.put(name, text.encode())
            with self._lock:
                del self._events[: len(events)]
            self._text = text
            if len(text) > _PIECE_CHARACTERS:
                self._piece, self._text = self._piece + 1, ""
            self._flushed = time.monotonic()

    def close(self, error: BaseException | None, seconds: float) -> None:
        """Note how the attempt ended, and write it if that takes no longer than `seconds`."""
        if not self._leads:
            return
        code = ExitCode.DONE if error is None else ExitCode.BUG
        code = error.code if isinstance(error, WorkerError) else code
        text = redacted(str(error)) if isinstance(error, WorkerError) else type(error).__name__
        end = EndEvent(code=int(code), text="" if error is None else text)
        self.note(end)
        self.stand(end={"code": end.code, "text": end.text})
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, min(seconds, _LAST_WORD_SECONDS)))

    def _write_regularly(self) -> None:
        while True:
            # Read before writing, so that what is noted before `close` is written in any case.
            last = self._closed.is_set()
            since, elapsed = time.monotonic() - self._flushed, time.monotonic() - self._began
            try:
                self._put_standing()
                # The longer a run, the rarer: the number of pieces stays bounded.
                interval = max(_FLUSH_SECONDS, _FLUSH_SHARE * elapsed)
                if last or (self._piece == 1 and not self._text) or since > interval:
                    self.flush()
            except InfrastructureError:  # a commit would meet it too, and end the attempt
                pass
            except WorkerError as error:
                log.warning("the record is not written: %s", error)
            if last:
                return
            # Often at first, when somebody is likely to watch.
            self._closed.wait(min(PROGRESS_SECONDS, max(_FIRST_SECONDS, elapsed / 4)))

    def _put_standing(self) -> None:
        with self._lock:
            standing = dict(self._standing)
        if standing:
            self._store.put(progress_name(self._attempt), json.dumps(standing).encode())


def _line_of(event: Event) -> str:
    # Eight digits, which `plain` keeps of a number, would be hundreds of seconds of Unix time.
    return json.dumps({**plain(asdict(event)), "time": event.time}) + "\n"


@contextmanager
def kept(store: Store, attempt: int, *, leads: bool, stop: StopFlag) -> Iterator[Journal]:
    """Open the journal of an attempt, and record how the attempt ends.

    Args:
        store: The output of the job.
        attempt: The number of the attempt.
        leads: Whether this is rank 0, which writes.
        stop: Signals.
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
