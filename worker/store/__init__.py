"""Object storage behind one small interface: S3 or a local folder."""

import os
import re
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

_LONGEST_NAME = 255  # bytes, NAME_MAX of Linux
_SHELL = re.compile(r"~[\w.-]*(/|$)|\$[\w{]")


def open_store(uri: str) -> Store:
    """Return the store whose root is `uri`: `s3://bucket/prefix`, `file:///path` or a path.

    Opening it sends no request. Raises `ConfigurationError` for any other scheme.
    """
    require_no_query(uri)
    _require_short_names(uri)
    if "://" in uri:
        uri = uri.strip()  # a path may begin or end with a blank
    try:
        parts = urlsplit(uri)
    except ValueError:  # from a malformed IPv6 address
        raise ConfigurationError(
            f"{uri}: is not an address; give s3://BUCKET/PREFIX, file:///PATH or a path"
        ) from None
    if parts.scheme == "s3":
        if uri[3:4] == "/" and uri[3:5] != "//":
            raise ConfigurationError(f"{uri}: is missing a slash; give s3://BUCKET/PREFIX")
        if not parts.netloc or "@" in parts.netloc:
            raise ConfigurationError(
                "an s3:// address has the form s3://BUCKET/PREFIX, without credentials"
            )
        # Not `parts.path`: a key may contain `?` and `#`, which end the path of a URL.
        return S3Store(parts.netloc, uri[len(f"s3://{parts.netloc}") :])
    if parts.scheme == "file":
        path = uri[len("file://") :].removeprefix("localhost")
        if not path.startswith("/"):
            raise ConfigurationError(
                f"{uri}: a file address has the form file:///PATH, with three slashes"
            )
        return LocalStore(Path(unquote(path)))
    if "://" in uri:
        raise ConfigurationError(
            f"{parts.scheme}:// is not supported; use s3://BUCKET/PREFIX, file:///PATH or a path"
        )
    if _SHELL.match(uri) and not Path(uri).exists():
        raise ConfigurationError(
            f"{uri}: ~ and variables are expanded by a shell, but not here; write the path out"
        )
    return LocalStore(Path(uri))


def write_uri(uri: str, data: bytes) -> None:
    """Write the object that `uri` names."""
    store, name = _open_parent(uri)
    if isinstance(store, LocalStore):
        path = (store.root / name).resolve()  # replace a link's target, not the link
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{uri}: is not a regular file; give another path")
        store, name = LocalStore(path.parent), path.name
    store.put(name, data)


def _open_parent(uri: str) -> tuple[Store, str]:
    require_no_query(uri)
    _require_short_names(uri)
    parent, _, name = uri.rpartition("/")
    if not name:
        raise ConfigurationError(f"{uri}: names a folder, but a file is needed")
    return open_store(f"{parent}/" if "/" in uri else "."), name


def require_no_query(uri: str) -> None:
    """Raise `ConfigurationError` for a presigned URL: it is a secret, and addresses are logged.

    Control characters and bytes that are not UTF-8 are refused, too.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in uri):
        raise ConfigurationError(f"{uri!a}: contains characters that an address must not contain")
    remote = "://" in uri and "=" in uri.partition("?")[2]
    if remote or is_signed(uri):
        raise ConfigurationError(
            "an address must not have a ?query; give s3://BUCKET/KEY, and set the credentials in "
            "the environment"
        )


def _require_short_names(uri: str) -> None:
    """Raise `ConfigurationError` for a path with a name that no file can have."""
    if "://" in uri and not uri.startswith("file:"):
        return
    for name in uri.split("/"):
        if len(os.fsencode(name)) > _LONGEST_NAME and "{" not in name:  # a pattern of shards
            raise ConfigurationError(
                f"{name[:60]}…: a file or folder name has at most {_LONGEST_NAME} bytes; shorten it"
            )


def read_uri(uri: str, limit: int | None = None) -> bytes:
    """Return the bytes of the object that `uri` names, up to a limit."""
    store, name = _open_parent(uri)
    if isinstance(store, LocalStore):
        path = store.root / name
        if path.is_fifo() or path.is_char_device():  # such as a shell's <(…)
            return path.read_bytes()[:limit]
    return store.get(name, 0, limit)
