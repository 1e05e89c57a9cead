"""The tars to index, given as a prefix, a brace pattern, or a wids index."""

import itertools
import json
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from worker.data.image_formats import compressed_among, describe_compressed, is_image_name
from worker.data.index import (
    parse_address,
)
from worker.errors import ConfigurationError, DataError
from worker.store import ObjectInfo, Store
from worker.text import read_text

log = logging.getLogger(__name__)

_MAX_LISTED = 10_000


@dataclass(frozen=True, kw_only=True)
class Tar:
    """A shard to index, as the store lists it."""

    name: str
    """Key of the tar in the store."""
    size: int
    """Size of the tar in bytes."""
    version: str
    """Version that changes whenever the tar is rewritten."""
    samples: int | None = None
    """The number of samples according to a wids index; None if it is not given."""


@dataclass(frozen=True)
class Source:
    """The shards to index, and their store."""

    store: Store
    """Root of the data set, where the index will be written."""
    tars: tuple[Tar, ...]
    """The shards."""


def find_tars(uri: str) -> Source:
    """Return the shards below a prefix, or in a brace pattern or a wids index (`shardlist`).

    Raises `ConfigurationError` if there are none or a named one is missing, and `DataError` if one
    differs in size from its entry in the wids index.
    """
    if uri.endswith(".json"):
        return _from_wids(uri)
    address = parse_address(uri)
    store = address.store
    if address.names is not None:
        return Source(store, _named(store, dict.fromkeys(address.names)))
    listed = plain_tars(store.uri, list(store.list()))
    _require_names(store, [info.key for info in listed])
    tars = tuple(
        Tar(name=info.key, size=info.size, version=info.version)
        for info in listed
        if "/" not in info.key
    )
    if not tars:
        folders = sorted({info.key.rpartition("/")[0] for info in listed})
        more = f"; there are some in {', '.join(folders[:4])}: index each folder" if folders else ""
        raise ConfigurationError(f"{store.uri}: holds no .tar{more or _instead(store)}")
    return Source(store, tars)


def plain_tars(uri: str, objects: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    """Return the tars among the objects of a store; compressed ones beside them are reported."""
    tars = [info for info in objects if info.key.endswith(".tar")]
    for line in describe_compressed(info.key for info in objects) if tars else ():
        log.warning("%s: %s", uri, line)
    return tars


def _instead(store: Store) -> str:
    """Describe what was found instead of tars, and what to do about it."""
    names = [info.key for info in itertools.islice(store.list(), _MAX_LISTED)]
    if compressed := compressed_among(names):
        return f", but {compressed}"
    if any(map(is_image_name, names)):
        return ", but images; pack them into shards with `worker pack`"
    return "; check the address" if names else ", nor anything else; check the address"


def _require_names(store: Store, names: list[str]) -> None:
    """Raise `ConfigurationError` for a shard whose name cannot be stored in an index."""
    for name in names:
        # Cc: control characters. Cs: lone surrogates, which cannot be encoded as UTF-8.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise ConfigurationError(
                f"{store.uri}: the shard {name!a} has a control or invalid character in its name; "
                "rename it"
            )


def _from_wids(uri: str) -> Source:
    """Return the shards that a wids index lists.

    Its form is {"shardlist": [{"url", "nsamples", "filesize"}]}; only url is required.
    """
    root, _, name = uri.rpartition("/")
    store = parse_address(f"{root}/" if root else "./").store
    try:
        entries = json.loads(read_text(store.get(name)))["shardlist"]
        urls = [str(entry["url"]).removeprefix(store.uri).removeprefix("./") for entry in entries]
        facts = [(entry.get("nsamples"), entry.get("filesize")) for entry in entries]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ConfigurationError(f"{uri}: not a wids index (no shardlist of urls)") from None
    foreign = [url for url in urls if "://" in url or url.startswith("/")]
    if foreign:
        raise ConfigurationError(
            f"{uri}: {foreign[0]} is not below {store.uri}; move the index beside the shards"
        )
    known = dict(zip(urls, facts, strict=True))
    tars = _named(store, {url: samples for url, (samples, _) in known.items()})
    for tar in tars:
        size = known[tar.name][1]
        if size is not None and size != tar.size:
            raise DataError(f"{store.uri}{tar.name}: {tar.size} bytes, but {uri} says {size}")
    return Source(store, tars)


def _named(store: Store, names: dict[str, int | None]) -> tuple[Tar, ...]:
    known = {info.key: info for info in store.list()}
    missing = [name for name in names if name not in known]
    if missing:
        more = f", and {len(missing) - 1} more are missing" if missing[1:] else ""
        raise ConfigurationError(
            f"{store.uri}{missing[0]}: no such object{more}; correct the pattern or the wids index"
        )
    return tuple(
        Tar(name=name, size=known[name].size, version=known[name].version, samples=samples)
        for name, samples in names.items()
    )
