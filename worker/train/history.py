"""The history of a run as one, however often it was stopped."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.store import Store

_PIECE = re.compile(r"records/(\d+)/history/.*\.jsonl")


@dataclass(frozen=True)
class History:
    """Events of a run in order; what later attempts did again is counted once.

    `seconds` is the time that the attempts have run for, between their first and last events.
    """

    events: tuple[dict[str, Any], ...]
    attempts: int
    seconds: float

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]


def read_history(store: Store) -> History:
    """The history in a run's records; empty where nothing was committed yet."""
    attempts: dict[int, list[dict[str, Any]]] = {}
    for info in store.list("records/"):
        match = _PIECE.fullmatch(info.key)
        if match:
            lines = store.get(info.key).decode().splitlines()
            attempts.setdefault(int(match[1]), []).extend(map(json.loads, lines))
    ordered = [sorted(attempts[number], key=lambda e: e["time"]) for number in sorted(attempts)]
    seconds = sum(events[-1]["time"] - events[0]["time"] for events in ordered)
    return History(tuple(stitched(ordered)), len(ordered), seconds)


def stitched(attempts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The events that count: of each attempt, those before the step at which the next began."""
    kept: list[dict[str, Any]] = []
    for events in attempts:
        begun = next(event["step"] for event in events if event["event"] == "start")
        kept = [event for event in kept if event.get("step", 0) <= begun]
        kept += events
    return kept
