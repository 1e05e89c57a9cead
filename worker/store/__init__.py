"""Object storage behind one small interface: S3 and a local folder."""

import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from worker.errors import ConfigurationError
from worker.redaction import is_signed
from worker.store.interface import ObjectInfo, ObjectMissing, Piece, Store
from worker.store.local import LocalStore
from worker.store.s3 import S3Store

__all__ = [
    "LocalStore",
    "ObjectInfo",
    "ObjectMissing",
    "Piece",
    "Store",
    "open_store",
    "read_uri",
    "write_uri",
]


def open_store(uri: str) -> Store:
    """The store whose root is `uri`: `s3://bucket/prefix`, `file:///path` or a path.

    Opening costs no request. Raises `ConfigurationError` for any other scheme.
    """
    require_no_query(uri)
    try:
        parts = urlsplit(uri)
    except ValueError:  # of IPv6 addresses
        raise ConfigurationError(
            f"{uri}: is no address; give s3://BUCKET/PREFIX, file:///PATH or a path"
        ) from None
    if parts.scheme == "s3":
        if uri.startswith("s3:/") and not uri.startswith("s3://"):
            raise ConfigurationError(f"{uri}: lacks a slash; give s3://BUCKET/PREFIX")
        if not parts.netloc or "@" in parts.netloc:
            raise ConfigurationError("an s3:// address is s3://BUCKET/PREFIX, without credentials")
        return S3Store(parts.netloc, uri.removeprefix(f"s3://{parts.netloc}"))
    if parts.scheme == "file":
        path = uri.removeprefix("file://").removeprefix("localhost")
        if not path.startswith("/"):
            raise ConfigurationError(f"{uri}: a file address is file:///PATH, with three slashes")
        return LocalStore(Path(unquote(path)))
    if "://" in uri:
        raise ConfigurationError(
            f"{parts.scheme}:// is not supported; use s3://BUCKET/PREFIX, file:///PATH or a path"
        )
    return LocalStore(Path(uri))


def write_uri(uri: str, data: bytes) -> None:
    """Write the one object that `uri` names."""
    store, name = _open_parent(uri)
    if isinstance(store, LocalStore):
        path = (store.root / name).resolve()  # what a link leads to, and not the link
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{uri}: is no regular file; give another path")
        store, name = LocalStore(path.parent), path.name
    store.put(name, data)


def _open_parent(uri: str) -> tuple[Store, str]:
    require_no_query(uri)
    parent, _, name = uri.rpartition("/")
    if not name:
        raise ConfigurationError(f"{uri}: names a folder where a file is needed")
    return open_store(f"{parent}/" if "/" in uri else "."), name


def require_no_query(uri: str) -> None:
    """Raise `ConfigurationError` for a presigned URL: it is a secret, and addresses are logged.

    And for what no address holds: control characters, and bytes that are not UTF-8.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in uri):
        raise ConfigurationError(f"{uri!a}: holds characters that no address may hold")
    remote = "://" in uri and "=" in uri.partition("?")[2]
    if remote or is_signed(uri):
        raise ConfigurationError(
            "an address takes no ?query; give s3://BUCKET/KEY, and the credentials in the "
            "environment"
        )


def read_uri(uri: str, limit: int | None = None) -> bytes:
    """The bytes of the one object that `uri` names, up to a limit."""
    store, name = _open_parent(uri)
    if isinstance(store, LocalStore):
        path = store.root / name
        if path.is_fifo() or path.is_char_device():  # as of a shell's <(…)
            return path.read_bytes()[:limit]
    return store.get(name, 0, limit)
