"""Standard output and error that may lose their reader, as `| head` does, or be closed."""

import codecs
import io
import os
import sys
from typing import Any


class _Outlet(io.TextIOWrapper):
    """Text stream that discards its text once nobody reads it anymore.

    A command that stopped there would leave its work undone, or hide its exit code.
    """

    has_reader = True

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._discard()
            super().flush()

    def _discard(self) -> None:
        self.has_reader = False
        _lead_nowhere(self.fileno())


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    os.set_inheritable(descriptor, True)  # noqa: FBT003 -- takes no keyword


def settle_streams() -> None:
    """Make writing to stdout and stderr succeed whether or not anybody reads them."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:  # closed, as by `>&-`; a file of ours must not take its descriptor
            _lead_nowhere(descriptor)
            nowhere = os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")
            setattr(sys, name, nowhere)
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            outlet = _Outlet(
                stream.buffer,
                # click would go around a stream in ASCII.
                encoding="utf-8"
                if codecs.lookup(stream.encoding).name == "ascii"
                else stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, outlet)


def has_reader() -> bool:
    """Return whether stdout still had a reader when it was last written to."""
    return getattr(sys.stdout, "has_reader", True)
