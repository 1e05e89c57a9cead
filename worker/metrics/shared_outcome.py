"""The outcome of rank 0, in memory that the parent process can still read after rank 0 has died."""

import json
import mmap
from typing import Any

_BYTES = 4096


class SharedOutcome:
    """A few values in anonymous memory that is shared with forked processes.

    Only one process writes; if it is killed in the middle of a write, readers get no values.
    """

    def __init__(self) -> None:
        # Anonymous, and shared by default: unlike a file, it needs no cleanup, and unlike a pipe,
        # no reader.
        self._memory = mmap.mmap(-1, _BYTES)

    def write(self, **values: Any) -> None:
        """Replace all values."""
        # Always the full length: this overwrites all of a longer text, and mmap requires it.
        self._memory[:] = json.dumps(values).encode().ljust(_BYTES, b"\0")

    def read(self) -> dict[str, Any]:
        """Return the values that were written last."""
        try:
            values: dict[str, Any] = json.loads(self._memory[:].rstrip(b"\0") or b"{}")
        except ValueError:
            return {}
        return values
