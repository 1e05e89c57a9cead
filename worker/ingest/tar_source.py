"""Existing WebDatasets as a source: tars at any address that `webdataset` can open.

Only the sound parts of the library are used: its patterns, its table of openers, and the dictionary
that users' functions take. A tar that it opens is read to its end and closed before any of it
counts, and then read by our own scan: the library takes a truncated tar for a complete one.
"""

import functools
import importlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from worker.data.image_formats import IMAGE_SUFFIXES, UNPACK
from worker.data.reader import BadSample
from worker.data.shard_scan import Scan, read_samples
from worker.data.tar_sample import TarSample, Unsound
from worker.data.tar_source import find_tars, plain_tars
from worker.errors import (
    ConfigurationError,
    DataError,
    InfrastructureError,
    WorkerError,
    first_line,
)
from worker.ingest.source import Item, Source, Unit
from worker.ingest.splits import split_named
from worker.ingest.web import open_hub, open_web
from worker.logs import count
from worker.redaction import redacted
from worker.store import Store, open_store

Map = Callable[[dict[str, Any]], dict[str, Any] | None]
"""A user's function: takes webdataset's sample dictionary; returns one, or None to omit it."""

_SPOOLED_BYTES = 256 << 20
_CHUNK = 1 << 20
_OWN = ("", "file", "s3")
_TOKEN = re.compile(r"[^a-z]+")


class _Tar(NamedTuple):
    """A tar: its store and name, or its address if only webdataset can open it."""

    name: str
    version: str
    store: Store | None = None
    size: int = 0
    split: str = ""


class TarSource(Source):
    """Tars of images and labels.

    Args:
        address: A prefix, a brace pattern, or several of them joined by `::`.
        label_field: The field of `.json` members that holds the label of a sample without a `.cls`.
        mapped: A function that is applied to every sample.
        allow_pipe: Whether `pipe:` addresses, which run a shell command, are opened.

    Raises:
        ConfigurationError: If nothing is there, or an address cannot be opened.
    """

    options = frozenset(("label", "mapped"))

    def __init__(
        self,
        address: str,
        *,
        label_field: str = "label",
        mapped: Map | None = None,
        allow_pipe: bool = False,
    ) -> None:
        self._label_field = label_field
        self._map = mapped
        self._tars = _find(address, allow_pipe=allow_pipe)
        self.passed_over = Counter()
        self._left_over: dict[int, dict[str, int]] = {}
        names = sorted({tar.split for tar in self._tars if tar.split})
        with_splits = f" with {', '.join(names)}" if names else ""
        self.description = f"WebDataset of {count(len(self._tars), 'tar')}{with_splits}"
        self.units = tuple(Unit(_shown(t.name), t.version, None) for t in self._tars)

    def items(self, unit: int) -> Iterator[Item]:
        """Yield the images of a tar; raises `DataError` if the tar is damaged."""
        tar = self._tars[unit]
        with _opened(tar) as (fetch, size):
            scan = Scan(bytes=size)
            for sample in read_samples(fetch, size, scan):
                item = self._item(sample, tar)
                if item:
                    yield item
            self._left_over[unit] = dict(scan.passed_over)
        if scan.problems:
            problem = scan.problems[0]
            remedy = "" if UNPACK in problem.text else "; fetch or write this tar again"
            raise DataError(f"{_shown(tar.name)}: byte {problem.offset}: {problem.text}{remedy}")

    def left_over(self, unit: int) -> dict[str, int]:
        """Return the number of members, by kind, that belong to no sample of a tar already read."""
        return self._left_over.get(unit, {})

    def _item(self, sample: TarSample, tar: _Tar) -> Item | None:
        key = sample.key
        try:
            if self._map is None:
                label, image = sample.labeled_image(self._label_field)
            else:
                sample.require_whole()
                fields = {"__key__": key, "__url__": _shown(tar.name), **sample.members}
                changed = _apply(self._map, fields)
                if changed is None:
                    return None
                key = str(changed.get("__key__", key))
                label, image = _of_fields(changed, self._label_field)
        except Unsound as problem:
            return Item(key=key, label="?", split=tar.split, load=functools.partial(_bad, problem))
        return Item(key=key, label=label, split=tar.split, load=lambda: image)


def _apply(mapped: Map, fields: dict[str, Any]) -> dict[str, Any] | None:
    try:
        changed = mapped(fields)
    except Exception as error:  # the user's own code
        raise Unsound(f"--map raised {type(error).__name__}: {first_line(error)}") from None
    if changed is not None and not isinstance(changed, dict):
        raise Unsound(f"--map returned a {type(changed).__name__}, not a dictionary or None")
    return changed


def _bad(problem: Unsound) -> bytes:
    raise BadSample("unsound", str(problem))


def _of_fields(fields: Mapping[str, Any], label_field: str) -> tuple[str, bytes]:
    """Return the label and the image in the dictionary that a user's function returned."""
    image = next((fields[suffix] for suffix in IMAGE_SUFFIXES if suffix in fields), None)
    if not isinstance(image, bytes):
        raise Unsound("has no .jpg, .jpeg, .png or .webp with bytes after --map")
    label = fields.get("cls")
    if label is None:
        data = fields.get("json")
        try:
            data = json.loads(data) if isinstance(data, bytes | str) else data
        except ValueError:
            data = None
        label = data.get(label_field) if isinstance(data, dict) else None
    if isinstance(label, bytes):
        label = label.decode(errors="replace")
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise Unsound(f"has no .cls, and no .json with {label_field!r}, after --map")
    return str(label), image


def _find(address: str, *, allow_pipe: bool) -> tuple[_Tar, ...]:
    if "::" not in address and urlsplit(address).scheme in _OWN and not _is_pipe(address):
        return _in_store(address)
    found: list[_Tar] = []
    for url in _library("shardlists").expand_urls(address):
        if _is_pipe(url) and not allow_pipe:
            raise ConfigurationError(
                "pipe: runs a shell command; pass --allow-pipe if you trust this address"
            )
        if urlsplit(url).scheme in _OWN and not _is_pipe(url):
            found += _in_store(url)
        else:
            found.append(_Tar(name=url, version=url))
    return _with_splits(found)


def _in_store(address: str) -> tuple[_Tar, ...]:
    """Return the tars of a pattern, below a prefix, or in folders below it named like splits."""
    if address.endswith((".tar", ".json")):
        return _with_splits(_found(address))
    store = open_store(address)
    tars = plain_tars(store.uri, list(store.list()))
    folders = {info.key.partition("/")[0] for info in tars if "/" in info.key}
    splits = {folder: split_named(folder) for folder in folders}
    if folders and all(splits.values()) and all("/" in info.key for info in tars):
        return tuple(
            _Tar(
                name=t.key,
                version=t.version,
                store=store,
                size=t.size,
                split=splits[t.key.partition("/")[0]] or "",
            )
            for t in tars
        )
    return _with_splits(_found(address))


def _found(address: str) -> list[_Tar]:
    source = find_tars(address)
    return [
        _Tar(name=t.name, version=t.version, store=source.store, size=t.size) for t in source.tars
    ]


def _with_splits(tars: list[_Tar]) -> tuple[_Tar, ...]:
    """Take the splits from the names of the tars, if each has one (`x-train-0000.tar`)."""
    named = [_split_in(urlsplit(tar.name).path.rpartition("/")[2]) for tar in tars]
    if not all(named):
        return tuple(tars)
    return tuple(tar._replace(split=split or "") for tar, split in zip(tars, named, strict=True))


def _split_in(name: str) -> str | None:
    found = {split_named(word) for word in _TOKEN.split(name.lower()) if word} - {None}
    return found.pop() if len(found) == 1 else None


def _shown(address: str) -> str:
    """Return an address for messages; a shell command may hold any secret."""
    return "pipe:[command]" if _is_pipe(address) else redacted(address)


def _is_pipe(address: str) -> bool:
    return address.startswith("pipe:")


def _library(name: str) -> Any:
    """Import a module of webdataset, which no other command needs; this imports torch, too."""
    return importlib.import_module(f"webdataset.{name}")


class _opened:  # noqa: N801 -- a context manager
    """Opens a tar; yields a function that fetches bytes from it, and its size."""

    def __init__(self, tar: _Tar) -> None:
        self._tar = tar
        self._file: IO[bytes] | None = None

    def __enter__(self) -> tuple[Callable[[int, int], bytes], int]:
        tar = self._tar
        if tar.store:
            store = tar.store
            return lambda start, stop: store.get(tar.name, start, stop), tar.size
        self._file = file = tempfile.SpooledTemporaryFile(
            _SPOOLED_BYTES, dir=os.environ.get("WORKER_SCRATCH") or None
        )
        size = _drain(tar.name, file)

        def fetch(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        return fetch, size

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def _drain(url: str, file: IO[bytes]) -> int:
    """Copy a tar to a file, and close the stream: only closing shows if it has arrived whole."""
    gopen = _library("gopen")
    gopen.gopen_schemes.update(http=open_web, https=open_web, hf=open_hub)
    os.environ.pop("GOPEN_VERBOSE", None)  # with it, `close` does not look at the exit status
    size = 0
    try:
        stream = gopen.gopen(url, "rb")
        try:
            while chunk := stream.read(_CHUNK):
                file.write(chunk)
                size += len(chunk)
        finally:
            stream.close()
    except WorkerError:
        raise
    except ImportError as error:
        raise ConfigurationError(
            f"{_shown(url)}: needs the package {error.name}; install it"
        ) from None
    except Exception as error:  # openers may raise anything
        raise InfrastructureError(
            f"{_shown(url)}: cannot be read"
            f"{'' if _is_pipe(url) else f' ({redacted(first_line(error))})'}"
        ) from None
    return size


def load_map(name: str) -> Map:
    """Return the function that `package.module:function` names.

    Raises:
        ConfigurationError: If it cannot be imported or is not a function.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"--map {name}: {error}; give PACKAGE.MODULE:FUNCTION") from None
    if not callable(found):
        raise ConfigurationError(f"--map {name}: is not a function")
    mapped: Map = found
    return mapped
