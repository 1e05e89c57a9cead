"""The images to predict: an indexed set, tars without an index, loose images, or a list of them."""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from worker.apply.file_reader import FileReader
from worker.apply.prediction_plan import SOURCE, PartPlan
from worker.data.image_formats import IMAGE_SUFFIXES, is_image_name
from worker.data.index import INDEX_NAME, Address, Index, Shard, parse_address, read_index
from worker.data.read_cache import Cache
from worker.data.reader import Reader, SampleReader
from worker.data.scratch import Scratch
from worker.data.shard_scan import scan_shard
from worker.data.sidecar import write_sidecar
from worker.errors import ConfigurationError, DataError
from worker.job.loaders import ReadSet
from worker.store import ObjectInfo, ObjectMissing, Store, open_store, read_uri
from worker.store.json_records import put_json

_PER_PART = 1024
_LISTS = (".txt", ".lst", ".list")
_SCANS = 8
_SLICES_KEPT = 8


@dataclass(frozen=True, kw_only=True)
class PredictionSource:
    """Images to predict, divided into parts."""

    kind: Literal["set", "tars", "files"]
    """How the images are stored."""
    uri: str
    """Their address."""
    identity: str
    """Digest of what is read: the index, or the listing."""
    depth: int | None
    """Bits in use in 16-bit images, if known."""
    parts: tuple[PartPlan, ...]
    """The parts, in order of the images."""
    images: ReadSet
    """The images, numbered through all parts."""


def open_prediction_source(address: str, out: Store) -> PredictionSource:
    """Recognize and open the images at an address.

    What has no index is listed, or scanned if it is tars; the result is written to the output, so
    that any number of starters read the same.

    Args:
        address: An indexed set, a prefix of tars or of images, or a list of addresses, one a line.
        out: The output of the prediction.

    Raises:
        ConfigurationError: If there is nothing to predict at the address.
        DataError: If a tar is damaged.
    """
    if address.lower().endswith(_LISTS):
        return _listed(_addresses(address), address, out)
    place = parse_address(address)
    try:
        place.store.get(INDEX_NAME, 0, 1)
        return _indexed(place.store, read_index(place), "set", None)
    except ObjectMissing:
        pass
    objects = list(place.store.list())
    tars = [info for info in objects if info.key.endswith(".tar")]
    if place.names is not None:
        tars = [info for info in tars if info.key in set(place.names)]
    if tars:
        index = _scan(place.store, tars, open_store(f"{out.uri}{SOURCE}"))
        return _indexed(place.store, index, "tars", open_store(f"{out.uri}{SOURCE}"))
    keys = [info.key for info in objects if is_image_name(info.key)]
    if not keys:
        raise ConfigurationError(
            f"{address}: holds no index, tars or images ({', '.join(IMAGE_SUFFIXES)})"
        )
    base = place.store.uri
    return _listed([(f"{base}{key}", key) for key in keys], base, out)


def _indexed(
    store: Store, index: Index, kind: Literal["set", "tars"], sidecars: Store | None
) -> PredictionSource:
    def open_reader(cache: Cache, scratch: Scratch | None, processes: int) -> Reader:
        return SampleReader(store, index, cache=cache, scratch=scratch, sidecars=sidecars)

    return PredictionSource(
        kind=kind,
        uri=store.uri,
        identity=index.identity,
        depth=index.depth,
        parts=tuple(PartPlan(name=shard.name, images=shard.samples) for shard in index.shards),
        images=ReadSet(open=open_reader, bytes=sum(shard.bytes for shard in index.shards)),
    )


def _scan(store: Store, tars: list[ObjectInfo], found: Store) -> Index:
    """Return the index of tars whose labels do not matter, made by the first who comes by."""
    try:
        return read_index(Address(found, None))
    except ConfigurationError:
        pass

    def scan(info: ObjectInfo) -> Shard:
        whole = scan_shard(functools.partial(store.get, info.key), info.size, None)
        if whole.problems:
            problem = whole.problems[0]
            raise DataError(
                f"{store.uri}{info.key}: byte {problem.offset}: {problem.text}; repair the tar, or "
                "leave it out"
            )
        return write_sidecar(found, info.key, whole, [(row, 0) for row in whole.rows])

    with ThreadPoolExecutor(_SCANS) as pool:
        shards = tuple(pool.map(scan, tars))
    index = Index(classes=("image",), shards=shards)
    put_json(found, INDEX_NAME, index.model_dump(exclude_none=True))
    return index


def _addresses(uri: str) -> Iterator[tuple[str, str]]:
    """Yield the addresses in a list, and each as it is written there."""
    folder = uri.rpartition("/")[0]
    for line in read_uri(uri).decode("utf-8-sig").splitlines():
        text = line.strip()
        if text:
            whole = "://" in text or text.startswith("/") or not folder
            yield (text if whole else f"{folder}/{text}"), text


def _listed(images: Iterable[tuple[str, str]], uri: str, out: Store) -> PredictionSource:
    """Write a listing down in slices, each of which is a part."""
    digest, parts = hashlib.sha256(), []
    slice_store = open_store(f"{out.uri}{SOURCE}")
    for number, lines in enumerate(_slices(images)):
        data = "".join(f"{address}\t{key}\n" for address, key in lines).encode()
        digest.update(data)
        slice_store.put(_slice_name(number), data)
        parts.append(PartPlan(name=lines[0][1], images=len(lines)))
    if not parts:
        raise ConfigurationError(f"{uri}: lists no images; write one address a line")

    def open_reader(cache: Cache, scratch: Scratch | None, processes: int) -> Reader:
        read = functools.lru_cache(_SLICES_KEPT)(functools.partial(_read_slice, slice_store))

        def entry(number: int) -> list[str]:
            return read(number // _PER_PART)[number % _PER_PART]

        return FileReader(lambda n: entry(n)[0], lambda n: entry(n)[1], cache)

    return PredictionSource(
        kind="files",
        uri=uri,
        identity=f"listing {digest.hexdigest()[:12]}",
        depth=None,
        parts=tuple(parts),
        images=ReadSet(open=open_reader, bytes=0),
    )


def _slices(images: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    lines: list[tuple[str, str]] = []
    for image in images:
        lines.append(image)
        if len(lines) == _PER_PART:
            yield lines
            lines = []
    if lines:
        yield lines


def _slice_name(number: int) -> str:
    return f"{number:06d}.tsv"


def _read_slice(store: Store, number: int) -> list[list[str]]:
    text = store.get(_slice_name(number)).decode()
    return [line.split("\t", 1) for line in text.splitlines()]
