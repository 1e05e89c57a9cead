"""The history of a run as one series of events, however often it was stopped."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from worker.layout import HISTORY, RECORDS
from worker.record.events import EndEvent, Event, StartEvent
from worker.record.read_records import read_history_lines
from worker.store import Store

_SIDE_BY_SIDE = 16

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class AttemptHistory:
    """An attempt's part of the history."""

    attempt: int
    """The number of the attempt."""
    events: tuple[Event, ...]
    """The events of the attempt, in order."""

    @property
    def start(self) -> StartEvent:
        """Return the start event of the attempt."""
        return next(event for event in self.events if isinstance(event, StartEvent))

    @property
    def end(self) -> EndEvent | None:
        """Return the end event of the attempt; None if it had no time to write one."""
        return next((event for event in self.events if isinstance(event, EndEvent)), None)

    @property
    def step(self) -> int:
        """Return the last step that the attempt is known to have completed."""
        return max(map(_step_of, self.events))

    @property
    def seconds(self) -> float:
        """Return the seconds from the first event of the attempt to its last."""
        return self.events[-1].time - self.events[0].time


@dataclass(frozen=True)
class History:
    """The history of a run."""

    parts: tuple[AttemptHistory, ...]
    """The parts of all attempts that recorded anything."""

    @cached_property
    def events(self) -> list[Event]:
        """Return the events of all attempts as one series; repeated steps count once."""
        return stitched(self.parts)

    @property
    def seconds(self) -> float:
        """Return the total running time of the attempts, without the gaps between them."""
        return sum(part.seconds for part in self.parts)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


def read_history(store: Store) -> History:
    """Read the history from a run's records; it has no parts if nothing has been recorded yet."""
    pieces = [
        (int(match[1]), info.key)
        for info in store.list(RECORDS)
        if (match := HISTORY.fullmatch(info.key))
    ]
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        found = list(pool.map(lambda piece: read_history_lines(store, piece[1]), pieces))
    told: dict[int, list[Event]] = {}
    for (attempt, _), lines in zip(pieces, found, strict=True):
        # Pieces are listed in key order, which is the order of their numbers: these are
        # zero-padded.
        told.setdefault(attempt, []).extend(lines)
    parts = (AttemptHistory(number, tuple(events)) for number, events in sorted(told.items()))
    # `start` requires the event, which is missing if the first piece is damaged.
    return History(tuple(p for p in parts if any(isinstance(e, StartEvent) for e in p.events)))


def stitched(parts: Sequence[AttemptHistory]) -> list[Event]:
    """Return each attempt's events, up to the step at which the next attempt began."""
    kept: list[Event] = []
    for part in parts:
        begun = part.start.step
        # What an attempt did beyond the step that the next one resumes from was discarded. End
        # events have no step, and count as 0 so that all are kept.
        kept = [event for event in kept if _step_of(event) <= begun]
        kept += part.events
    return kept


def _step_of(event: Event) -> int:
    return 0 if isinstance(event, EndEvent) else event.step
