"""Counts of this process's requests to its stores, for whoever listens."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol


class Listener(Protocol):
    """Counts by operation: `get`, `put`, `create`, `list`, `delete`, `upload`, `part`."""

    def request(self, operation: str, seconds: float, size: int) -> None:
        """Take note of a try of a request.

        Args:
            operation: The S3 operation.
            seconds: How long it took.
            size: Bytes moved.
        """

    def retry(self, operation: str) -> None:
        """A try that failed and is followed by another."""

    def failure(self, operation: str) -> None:
        """A request that was given up."""


class _Nobody:
    def request(self, operation: str, seconds: float, size: int) -> None: ...

    def retry(self, operation: str) -> None: ...

    def failure(self, operation: str) -> None: ...


@dataclass
class TransferCount:
    """The bytes that a request has moved so far; the request adds to it."""

    size: int = 0
    """Bytes moved so far."""


_listener: Listener = _Nobody()


def listen(listener: Listener) -> None:
    """Have all further requests of this process told to `listener`, and to no other."""
    global _listener
    _listener = listener


def listener() -> Listener:
    """The one that counts."""
    return _listener


Call = tuple[str, tuple[Any, ...]]
"""A method of a `Listener` and what it was called with."""


class Relay:
    """Collects counts in a process whose parent adds them up."""

    def __init__(self) -> None:
        self._events: list[Call] = []

    def request(self, operation: str, seconds: float, size: int) -> None:
        """See `Listener`."""
        self._events.append(("request", (operation, seconds, size)))

    def retry(self, operation: str) -> None:
        """See `Listener`."""
        self._events.append(("retry", (operation,)))

    def failure(self, operation: str) -> None:
        """See `Listener`."""
        self._events.append(("failure", (operation,)))

    def take(self) -> list[Call]:
        """Return the events since the last call."""
        count = len(self._events)  # other threads may tell more meanwhile
        taken, self._events[:count] = self._events[:count], []
        return taken


def replay(events: Iterable[Call]) -> None:
    """Tell this process's listener what was told in another."""
    for name, arguments in events:
        getattr(_listener, name)(*arguments)


@contextmanager
def measured(operation: str) -> Iterator[TransferCount]:
    """Tell of the try of a request that is made inside, whether it succeeds or not."""
    moved, began = TransferCount(), time.monotonic()
    try:
        yield moved
    finally:
        _listener.request(operation, time.monotonic() - began, moved.size)
