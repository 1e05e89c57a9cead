"""Records as they are found: what is damaged is told and left out, as the rest has its worth."""

import io
import json
import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.store import ObjectMissing, Store

log = logging.getLogger(__name__)


def read_json(store: Store, name: str) -> Any:
    """The JSON data of an object; None where it is not there or not whole."""
    try:
        return json.loads(store.get(name))
    except ObjectMissing:
        return None
    except ValueError:
        _damaged(store, name)
        return None


def read_array(store: Store, name: str) -> npt.NDArray[np.int64] | None:
    """The array of a .npy file; None likewise."""
    try:
        array: npt.NDArray[np.int64] = np.load(io.BytesIO(store.get(name)), allow_pickle=False)
    except ObjectMissing:
        return None
    except (ValueError, EOFError):
        _damaged(store, name)
        return None
    return array


def read_lines(store: Store, name: str) -> list[dict[str, Any]]:
    """The JSON lines of an object, up to the first that is not whole."""
    lines = []
    for line in store.get(name).splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            _damaged(store, name)
            break
    return lines


def _damaged(store: Store, name: str) -> None:
    log.warning("%s%s is damaged and left out", store.uri, name)
