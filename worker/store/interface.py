"""The interface of a store, and the errors that it raises."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from worker.errors import ConfigurationError

Piece = bytes | memoryview


class ObjectMissing(ConfigurationError):
    """A named object does not exist; callers that expect this catch it."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object of a listing."""

    key: str
    """Its key below the store's root."""
    size: int
    """Its size in bytes."""
    modified: float
    """When it was written, in seconds of Unix time."""
    version: str = ""
    """Another one whenever it was written again."""


class Store(Protocol):
    """Objects below one root; keys are relative, with forward slashes.

    Every method raises `ConfigurationError` for errors that retrying cannot fix (no such bucket, no
    rights), `InfrastructureError` when retries gave up, `ObjectMissing` if a named object is
    missing.
    """

    uri: str
    """The root, ending in a slash; free of secrets, so that it can be logged."""
    fences: bool
    """False once a conditional write was refused as not implemented, and done as a plain one."""

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes of an object.

        Args:
            key: The name of the object.
            start: The first byte.
            stop: The byte after the last; None for all.

        Returns:
            The bytes [start, stop), fewer if the object is shorter.

        Raises:
            ObjectMissing: If there is none.
        """

    def put(self, key: str, data: bytes) -> None:
        """Write or replace a whole object; readers see all of it or nothing."""

    def put_stream(self, key: str, size: int, pieces: Iterable[Piece]) -> None:
        """Write or replace an object; only a part of it is ever in memory.

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
            data: Its contents, unique to the caller: an object with just these bytes counts as
                created by this call, since a retry can meet its own first try.
            check: Called right before every try; may raise.

        Returns:
            Whether it was created; False if another writer's object exists.
        """

    def replace(self, key: str, size: int, pieces: Iterable[Piece], version: str) -> bool:
        """Write an object of `size` bytes if what is there is still `version`.

        Args:
            key: The object.
            size: Bytes of the new contents.
            pieces: The new contents.
            version: As `list` gives it; empty if there was no object.

        Returns:
            False if another version is there by now, which may be what an earlier try of this call
            has written.
        """

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects whose key starts with `prefix`, in key order."""

    def delete(self, key: str) -> None:
        """Remove an object; no error if it is gone."""

    def abort_uploads(self, key: str) -> int:
        """Remove what broken-off uploads of this object have left; returns their number."""
