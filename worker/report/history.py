"""The history of a run as one, however often it was stopped."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from worker.layout import HISTORY, RECORDS
from worker.report.read_records import read_history_lines
from worker.store import Store

_SIDE_BY_SIDE = 16


@dataclass(frozen=True)
class AttemptHistory:
    """An attempt's part of the history: its number and its events, in order."""

    attempt: int
    events: tuple[dict[str, Any], ...]

    @property
    def start(self) -> dict[str, Any]:
        """Return the event of its start: `step`, `world_size`."""
        return next(event for event in self.events if event["event"] == "start")

    @property
    def end(self) -> dict[str, Any] | None:
        """Return the event of its end: `code`, `text`; None if it had no time to write one."""
        return next((event for event in self.events if event["event"] == "end"), None)

    @property
    def step(self) -> int:
        """The last step that it is known to have done."""
        return max(event.get("step", 0) for event in self.events)

    @property
    def seconds(self) -> float:
        """Return the seconds from its first event to its last."""
        return float(self.events[-1]["time"] - self.events[0]["time"])


@dataclass(frozen=True)
class History:
    """The parts of all attempts that told anything, and the `events` that count."""

    parts: tuple[AttemptHistory, ...]

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Return the events of all attempts as if they were one; repeated steps count once."""
        return stitched(self.parts)

    @property
    def seconds(self) -> float:
        """The time that the attempts have run for, without what lies between them."""
        return sum(part.seconds for part in self.parts)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]


def read_history(store: Store) -> History:
    """The history in a run's records; without parts where nothing was told yet."""
    pieces = [
        (int(match[1]), info.key)
        for info in store.list(RECORDS)
        if (match := HISTORY.fullmatch(info.key))
    ]
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        found = list(pool.map(lambda piece: read_history_lines(store, piece[1]), pieces))
    told: dict[int, list[dict[str, Any]]] = {}
    for (attempt, _), lines in zip(pieces, found, strict=True):
        told.setdefault(attempt, []).extend(lines)
    parts = (AttemptHistory(number, tuple(events)) for number, events in sorted(told.items()))
    return History(tuple(p for p in parts if any(e["event"] == "start" for e in p.events)))


def stitched(parts: Sequence[AttemptHistory]) -> list[dict[str, Any]]:
    """The events that count: of each attempt, those before the step at which the next began."""
    kept: list[dict[str, Any]] = []
    for part in parts:
        begun = part.start["step"]
        kept = [event for event in kept if event.get("step", 0) <= begun]
        kept += part.events
    return kept
