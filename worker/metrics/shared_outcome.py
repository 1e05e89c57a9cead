"""The outcome of the leading process, in memory that its parent can read after its death."""

import json
import mmap
from typing import Any

_BYTES = 4096


class SharedOutcome:
    """A few values in memory that processes share from a fork on; it has no name to be left over.

    One process writes; what it was killed in the middle of writing reads as nothing.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BYTES)

    def write(self, **values: Any) -> None:
        """Replace all values."""
        self._memory[:] = json.dumps(values).encode().ljust(_BYTES, b"\0")

    def read(self) -> dict[str, Any]:
        """The values that were written last."""
        try:
            values: dict[str, Any] = json.loads(self._memory[:].rstrip(b"\0") or b"{}")
        except ValueError:
            return {}
        return values
