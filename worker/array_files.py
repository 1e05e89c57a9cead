"""Arrays in numpy's file formats, read from bytes on any thread."""

import io
import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

# numpy parses the header of an array with `ast`. If a garbage collection lets another thread do the
# same in the middle of that, Python 3.11 raises a `SystemError` ("AST constructor recursion depth
# mismatch", https://github.com/python/cpython/issues/106905), so one thread reads at a time.
_lock = threading.Lock()
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def load_array(data: bytes) -> Any:
    """Return what an .npy file holds; on other bytes, it may raise anything."""
    with _lock:
        return np.load(io.BytesIO(data), allow_pickle=False)


def load_arrays(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays in an .npz file by name; on other bytes, it may raise anything."""
    with _lock, np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
