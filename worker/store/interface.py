"""The interface of a store, and the errors that it raises."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from worker.errors import ConfigurationError

Piece = bytes | memoryview


class ObjectMissing(ConfigurationError):
    """Error for a named object that does not exist; caught by callers that expect it."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object in a listing."""

    key: str
    """Its key below the store's root."""
    size: int
    """Its size in bytes."""
    modified: float
    """The time at which it was written, as Unix time in seconds."""
    version: str = ""
    """The version of the object, which changes whenever it is rewritten."""


class Store(Protocol):
    """Objects below one root; keys are relative, with forward slashes.

    Every method raises `ConfigurationError` for errors that retrying cannot fix (no such bucket, no
    permission), `InfrastructureError` if all retries failed, and `ObjectMissing` if a named object
    is missing.
    """

    uri: str
    """The root, ending in a slash; free of secrets, so that it can be logged."""
    fences: bool
    """False once a write had to be unconditional, as the store has no conditional writes."""

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes of an object.

        Args:
            key: The name of the object.
            start: The first byte.
            stop: The byte after the last; None for the rest of the object.

        Returns:
            The bytes [start, stop), fewer if the object is shorter.

        Raises:
            ObjectMissing: If the object does not exist.
        """

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object atomically; readers never see only a part of it."""

    def put_stream(self, key: str, size: int, pieces: Iterable[Piece]) -> None:
        """Write or replace an object; a large one is never in memory as a whole.

        Args:
            key: The name of the object.
            size: Its size in bytes.
            pieces: Its contents.
        """

    def put_if_absent(
        self, key: str, data: bytes, check: Callable[[], None] = lambda: None
    ) -> bool:
        """Create an object unless it exists.

        Args:
            key: The name of the object.
            data: Its contents, unique to the caller: an object with exactly these bytes counts as
                created by this call, since a retry may find what its own first try wrote.
            check: Called right before every try; may raise.

        Returns:
            Whether it was created; False if another writer's object exists.
        """

    def replace(self, key: str, size: int, pieces: Iterable[Piece], version: str) -> bool:
        """Write an object of `size` bytes if the existing one still has this `version`.

        Args:
            key: The name of the object.
            size: The size of the new contents in bytes.
            pieces: The new contents.
            version: The version as returned by `list`; empty if there was no object.

        Returns:
            Whether it was written; False if there is another version by now, possibly written by an
            earlier try of this call.
        """

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects whose key starts with `prefix`, in key order."""

    def delete(self, key: str) -> None:
        """Remove an object; no error if it does not exist."""

    def abort_uploads(self, key: str) -> int:
        """Remove the leftovers of interrupted uploads of this object, and return their number."""
