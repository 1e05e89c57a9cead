"""The object that ends a job: its result."""

import json
from typing import Any

from worker.store import ObjectMissing, Store

DONE_NAME = "done.json"


def read_done(store: Store) -> dict[str, Any] | None:
    """The result in a job's output, if the job is done."""
    try:
        done: dict[str, Any] = json.loads(store.get(DONE_NAME))
    except ObjectMissing:
        return None
    return done
