"""Readers of records: damaged objects are logged and skipped, as the rest is still of use."""

import io
import logging
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from worker.errors import WorkerError
from worker.learn.confusion import Rows, merged
from worker.record.events import Event, parse_event
from worker.store import ObjectMissing, Store
from worker.store.json_records import complaint, read_record

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 30

M = TypeVar("M", bound=BaseModel)


def read_data(store: Store, name: str, schema: type[M]) -> Any:
    """Return the JSON data of an object.

    Args:
        store: The output of the run.
        name: The name of the object.
        schema: What it must look like.

    Returns:
        The data; None if it is missing or damaged.
    """
    try:
        found = read_record(store, name, schema)
    except ObjectMissing:
        return None
    return found.model_dump() if found else None


def read_confusion(store: Store, name: str, classes: int) -> Rows | None:
    """Return the rows of a confusion matrix (see `worker.learn.confusion`).

    Args:
        store: The output of the run.
        name: The name of the object.
        classes: The number of classes.

    Returns:
        The rows; None if they are missing, damaged or of other classes.
    """
    try:
        array = np.load(io.BytesIO(store.get(name, 0, _MAX_BYTES)), allow_pickle=False)
    except ObjectMissing:
        return None
    except WorkerError:
        raise
    except Exception:  # of bytes by chance, numpy raises whatever its parsers meet
        _tell(store, name)
        return None
    sound = isinstance(array, np.ndarray) and array.dtype == np.int64 and array.ndim == 2
    if not sound or array.shape[1] != 3 or (array < 0).any() or (array[:, :2] >= classes).any():
        _tell(store, name)
        return None
    return merged([array])


def read_history_lines(store: Store, name: str) -> list[Event]:
    """Return the events of a piece of history, up to the first that is damaged."""
    events: list[Event] = []
    for line in store.get(name, 0, _MAX_BYTES).splitlines():
        try:
            events.append(parse_event(line))
        except ValueError as error:
            _tell(store, name, f" ({complaint(error)})")
            break
    return events


def _tell(store: Store, name: str, why: str = "") -> None:
    log.warning("%s%s is damaged%s and left out", store.uri, name, why)
