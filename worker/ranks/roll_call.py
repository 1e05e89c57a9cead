"""Roll call of the ranks before they form a process group: a rank may leave until all have joined.

Without it, a rank that is asked to stop while it waits for the others could not end in time: torch
ignores signals while waiting.
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from worker.errors import StopRequested

_POLL_SECONDS = 0.1
_JOINED, _GATE, _OPEN, _SEALED = "joined", "gate", "open", "sealed"


def join(store: Any, world_size: int, looks: Iterator[None]) -> None:
    """Join the other ranks, and return once all have joined.

    Args:
        store: The store of the rendezvous.
        world_size: The number of ranks.
        looks: Waits a moment at each step; raises `StopRequested` if this rank has to stop.

    Raises:
        StopRequested: If this rank left before all had joined. Once all have, they count on each
            other and would wait for this rank, ignoring signals, so it then joins regardless.
    """
    store.add(_JOINED, 1)
    while not _is_complete(store, world_size):
        try:
            next(looks)
        except StopRequested:
            if _leave(store):
                raise
            return


def _is_complete(store: Any, world_size: int) -> bool:
    """Return whether all ranks have joined; from then on, none can leave."""
    if store.add(_JOINED, 0) < world_size:
        return False
    gate = _gate(store)
    # The count is read once more while the gate is known to be open: whoever leaves replaces the
    # gate's value, so the exchange fails if a rank has left since.
    if gate.startswith(_OPEN) and store.add(_JOINED, 0) >= world_size:
        gate = store.compare_set(_GATE, gate, _SEALED).decode()
    return gate == _SEALED


def _leave(store: Any) -> bool:
    """Take this rank back out; return False if all have joined, so that it must stay."""
    own = uuid.uuid4().hex
    while (gate := _gate(store)) != _SEALED:
        if gate.startswith(_OPEN) and store.compare_set(_GATE, gate, own).decode() == own:
            store.add(_JOINED, -1)
            store.set(_GATE, f"{_OPEN}{own}")
            return True
        time.sleep(_POLL_SECONDS)  # another rank is leaving, or all have just joined
    return False


def _gate(store: Any) -> str:
    """Return the state of the gate that orders joining and leaving; it is open at first."""
    gate: str = store.compare_set(_GATE, "", _OPEN).decode()
    return gate
