"""Counts of this process's requests to its stores, reported to a listener."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol


class Listener(Protocol):
    """Receiver of counts by operation.

    The operations are `get`, `put`, `create`, `list`, `delete`, `upload` and `part`.
    """

    def request(self, operation: str, seconds: float, size: int) -> None:
        """Record one try of a request.

        Args:
            operation: The S3 operation.
            seconds: How long the try took.
            size: Bytes moved.
        """

    def retry(self, operation: str) -> None:
        """Record a failed try that is followed by another."""

    def failure(self, operation: str) -> None:
        """Record a request whose retries have all failed."""


class _Nobody:
    def request(self, operation: str, seconds: float, size: int) -> None: ...

    def retry(self, operation: str) -> None: ...

    def failure(self, operation: str) -> None: ...


@dataclass
class TransferCount:
    """Count of the bytes that a request has moved so far; the request itself updates it."""

    size: int = 0
    """Bytes moved so far."""


_listener: Listener = _Nobody()


def listen(listener: Listener) -> None:
    """Report all further requests of this process to `listener`, and to no other."""
    global _listener
    _listener = listener


def listener() -> Listener:
    """Return the current listener."""
    return _listener


Call = tuple[str, tuple[Any, ...]]
"""The name of a `Listener` method, and the arguments that it was called with."""


class Relay:
    """Listener that collects events in a process whose parent counts them."""

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
        count = len(self._events)  # other threads may add more meanwhile
        taken, self._events[:count] = self._events[:count], []
        return taken


def replay(events: Iterable[Call]) -> None:
    """Pass the events of another process on to this process's listener."""
    for name, arguments in events:
        getattr(_listener, name)(*arguments)


@contextmanager
def measured(operation: str) -> Iterator[TransferCount]:
    """Report the request made in the context to the listener, whether it succeeds or not."""
    moved, began = TransferCount(), time.monotonic()
    try:
        yield moved
    finally:
        _listener.request(operation, time.monotonic() - began, moved.size)
