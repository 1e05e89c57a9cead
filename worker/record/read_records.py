"""Readers of records; they log and skip damaged objects, since the rest is still useful."""

import logging
from typing import TypeVar

from pydantic import BaseModel

from worker.record.events import Event, parse_event
from worker.store import ObjectMissing, Store
from worker.store.json_records import MAX_BYTES, complaint, get_json

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 30  # keeps a damaged or foreign object from filling the memory

M = TypeVar("M", bound=BaseModel)


def read_or_skip(store: Store, name: str, schema: type[M], limit: int = MAX_BYTES) -> M | None:
    """Read and validate a JSON object.

    Args:
        store: The output of the run.
        name: The name of the object.
        schema: The schema that the data must match.
        limit: The largest size that is believed, in bytes.

    Returns:
        The record; None if the object is missing or damaged.
    """
    try:
        return get_json(store, name, schema, limit)
    except ObjectMissing:
        return None


def read_history_lines(store: Store, name: str) -> list[Event]:
    """Return the events of a piece of history, up to the first damaged line."""
    events: list[Event] = []
    for line in store.get(name, 0, _MAX_BYTES).splitlines():
        try:
            events.append(parse_event(line))
        except ValueError as error:
            _tell(store, name, f" ({complaint(error)})")
            break
    return events


def _tell(store: Store, name: str, why: str = "") -> None:
    log.warning("%s%s: is damaged%s; skipped", store.uri, name, why)
