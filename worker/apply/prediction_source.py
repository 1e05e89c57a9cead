"""The images to predict: an indexed set, tars without an index, loose images, or a list of them.

What has no index is listed, or scanned if it is tars, by the first starter. It writes the result
below the output, where all others find it: what is predicted is what the plan names.
"""

import functools
import hashlib
import json
import logging
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from worker.apply.file_reader import FileReader
from worker.apply.prediction_plan import LISTS, SOURCE, Kind, PartPlan, PredictionPlan
from worker.data.image_formats import (
    IMAGE_SUFFIXES,
    compressed_among,
    describe_left_out,
    is_image_name,
)
from worker.data.index import Address, Index, Shard, parse_address, read_index
from worker.data.read_cache import Cache
from worker.data.reader import Reader, SampleReader
from worker.data.scratch import Scratch
from worker.data.shard_scan import scan_shard
from worker.data.sidecar import write_sidecar
from worker.data.tar_source import plain_tars
from worker.errors import ConfigurationError, DataError
from worker.job.loaders import ReadSet
from worker.layout import INDEX_NAME
from worker.logs import count
from worker.store import ObjectInfo, ObjectMissing, Store, open_store, read_uri
from worker.store.json_records import put_json
from worker.text import printable

log = logging.getLogger(__name__)

_PER_PART = 1024
_SCANS = 8
_SLICES_KEPT = 8


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """Images to predict, as the first starter has found them."""

    kind: Kind
    """How they are stored."""
    identity: str
    """Digest of what is read: the index, or the listing."""
    place: str
    """Where the listing or the scans are, below the output; empty for an indexed set."""
    parts: tuple[PartPlan, ...]
    """The parts, in order of the images."""


def source_of(address: str) -> str:
    """Return the address of the images as the plan has it."""
    if address.lower().endswith(LISTS):
        return address
    place = parse_address(address)
    return place.store.uri if place.names is None else address


def find_images(address: str, out: Store) -> FoundImages:
    """Recognize the images at an address, and write down which they are unless an index says so.

    Args:
        address: An indexed set, a prefix of tars or of images, or a list of addresses, one a line.
        out: The output of the prediction.

    Raises:
        ConfigurationError: If there is nothing to predict at the address.
        DataError: If a tar is damaged.
    """
    # Under a name of its own, as several starters may come at once; the plan names the one in use.
    place = f"{SOURCE}{uuid.uuid4().hex[:12]}/"
    if address.lower().endswith(LISTS):
        return _write_listing(_addresses(address), address, out, place)
    found = parse_address(address)
    try:
        found.store.get(INDEX_NAME, 0, 1)
    except ObjectMissing:
        pass
    else:
        index = read_index(found)
        return FoundImages(kind="set", identity=index.identity, place="", parts=_parts(index))
    objects = list(found.store.list())
    tars = plain_tars(found.store.uri, objects)
    if found.names is not None:
        there = {info.key: info for info in tars}
        missing = [name for name in found.names if name not in there]
        if missing:
            raise ConfigurationError(f"{found.store.uri}{missing[0]}: no such tar")
        tars = [there[name] for name in found.names]
    if tars:
        index = _scan(found.store, tars, open_store(f"{out.uri}{place}"))
        return FoundImages(kind="tars", identity=index.identity, place=place, parts=_parts(index))
    keys = _images_among([info.key for info in objects])
    if not keys and is_image_name(address):
        raise ConfigurationError(
            f"{address}: --out takes a whole set; list single images in a .txt file"
        )
    if not keys and (compressed := compressed_among(info.key for info in objects)):
        raise ConfigurationError(f"{address}: holds no tars, but {compressed}")
    if not keys:
        raise ConfigurationError(
            f"{address}: holds no index, tars or images ({', '.join(IMAGE_SUFFIXES)})"
        )
    base = found.store.uri
    return _write_listing(((f"{base}{key}", key) for key in keys), base, out, place)


def _images_among(keys: list[str]) -> list[str]:
    """Return the keys of images; those of unsupported formats are reported."""
    for line in describe_left_out(keys):
        log.warning("%s", line)
    return [key for key in keys if is_image_name(key)]


def open_images(plan: PredictionPlan, out: Store) -> tuple[ReadSet, int | None]:
    """Return the images of a plan, and the bits in use in its 16-bit images, if known.

    Raises:
        ConfigurationError: If they are no longer those that were planned.
    """
    if plan.kind == "files":
        return _open_listing(open_store(f"{out.uri}{plan.place}")), None
    address, sidecars = parse_address(plan.source), None
    if plan.kind == "tars":
        sidecars = open_store(f"{out.uri}{plan.place}")
        index = read_index(Address(sidecars, None))
    else:
        index = read_index(address)
    if index.identity != plan.identity:
        raise ConfigurationError(
            f"{plan.source}: is now {index.identity}, but the prediction in {out.uri} is of "
            f"{plan.identity}; use another --out"
        )

    def open_reader(cache: Cache, scratch: Scratch | None, processes: int) -> Reader:
        return SampleReader(address.store, index, cache=cache, scratch=scratch, sidecars=sidecars)

    size = sum(shard.bytes for shard in index.shards)
    return ReadSet(open=open_reader, bytes=size), index.depth


def _parts(index: Index) -> tuple[PartPlan, ...]:
    return tuple(PartPlan(name=shard.name, images=shard.samples) for shard in index.shards)


def _scan(store: Store, tars: list[ObjectInfo], found: Store) -> Index:
    """Return an index of tars whose labels do not matter, with its sidecars in `found`."""

    def scan(info: ObjectInfo) -> Shard:
        whole = scan_shard(functools.partial(store.get, info.key), info.size, None)
        if whole.malformed:
            problem = whole.problems[-1]
            raise DataError(
                f"{store.uri}{info.key}: byte {problem.offset}: {problem.text}; repair the tar, or "
                "leave it out"
            )
        if whole.rows and whole.problems:
            log.warning(
                "%s%s: %s without an image left out; the first: %s",
                store.uri,
                info.key,
                count(len(whole.problems), "sample"),
                whole.problems[0].text,
            )
        return write_sidecar(found, info.key, whole, [(row, 0) for row in whole.rows])

    with ThreadPoolExecutor(_SCANS) as pool:
        shards = tuple(pool.map(scan, tars))
    if not any(shard.samples for shard in shards):
        raise ConfigurationError(f"{store.uri}: its tars hold no images")
    index = Index(classes=("image",), shards=shards)
    put_json(found, INDEX_NAME, index.model_dump(exclude_none=True))
    return index


def _addresses(uri: str) -> Iterator[tuple[str, str]]:
    """Yield the addresses in a list, and each as it is written there."""
    folder = uri.rpartition("/")[0]
    try:
        lines = read_uri(uri).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{uri}: is not UTF-8; convert it") from None
    check = functools.lru_cache(1024)(open_store)
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        whole = "://" in text or text.startswith("/") or not folder
        address = text if whole else f"{folder}/{text}"
        try:
            check(address.rpartition("/")[0] or ".")
        except ConfigurationError as error:
            # Without the address, which may hold a secret.
            raise ConfigurationError(f"{uri}: line {number}: {error}") from None
        yield address, text


def _write_listing(
    images: Iterable[tuple[str, str]], uri: str, out: Store, place: str
) -> FoundImages:
    """Write a listing down in slices, one for each part."""
    digest, parts = hashlib.sha256(), []
    slices = open_store(f"{out.uri}{place}")
    for number, lines in enumerate(_slices(images)):
        data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        digest.update(data)
        slices.put(_slice_name(number), data)
        parts.append(PartPlan(name=printable(lines[0][1]), images=len(lines)))
    if not parts:
        raise ConfigurationError(f"{uri}: lists no images; write one address a line")
    identity = f"listing {digest.hexdigest()[:12]}"
    return FoundImages(kind="files", identity=identity, place=place, parts=tuple(parts))


def _open_listing(slices: Store) -> ReadSet:
    def open_reader(cache: Cache, scratch: Scratch | None, processes: int) -> Reader:
        read = functools.lru_cache(_SLICES_KEPT)(functools.partial(_read_slice, slices))

        def entry(number: int) -> list[str]:
            return read(number // _PER_PART)[number % _PER_PART]

        return FileReader(lambda n: entry(n)[0], lambda n: printable(entry(n)[1]), cache)

    return ReadSet(open=open_reader, bytes=0)


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
    return f"{number:06d}.jsonl"


def _read_slice(store: Store, number: int) -> list[list[str]]:
    return [json.loads(line) for line in store.get(_slice_name(number)).split(b"\n") if line]
