"""An index for tars that exist already: every shard is read once, and only the index is new.

What was learned of a shard is staged beside it until the whole index is written, so that an
interrupted run resumes where it was; class numbers are known only once all labels are.
"""

import functools
import io
import itertools
import json
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from worker.data.decode_image import ImageSpec, decode
from worker.data.image_formats import is_image_name
from worker.data.index import (
    Address,
    Index,
    Shard,
    parse_address,
    read_back,
    read_index,
    write_index,
    write_sidecar,
)
from worker.data.reader import BadSample
from worker.data.shard_scan import Problem, SampleRow, Scan, Unsound, depth_for, scan_shard
from worker.errors import ConfigurationError, DataError, WorkerError
from worker.logs import count
from worker.store import ObjectMissing, Store, read_uri
from worker.text import read_name, read_text

_SHOWN = 20
_MAX_LISTED = 10_000
_COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4)|zip)$", re.IGNORECASE)
_STAGED_VERSION = 3
_NUMBER = re.compile(r"[0-9]{1,9}")
_MAX_CLASSES = 1 << 16  # a much larger label is not a class number
_ROW_DTYPE = np.dtype(
    [(name, "<u8") for name in SampleRow._fields if name != "label"] + [("label", "<u4")]
)


@dataclass(frozen=True, kw_only=True)
class Tar:
    """A shard to index, as the store lists it."""

    name: str
    """Its key."""
    size: int
    """Its size in bytes."""
    version: str
    """Another one whenever it was written again."""
    samples: int | None = None
    """The number of samples in it by an older index; None if there is none."""


@dataclass(frozen=True)
class Source:
    """The shards to index."""

    store: Store
    """The root, where the index will be."""
    tars: tuple[Tar, ...]
    """The shards."""


def find_tars(uri: str) -> Source:
    """The shards at a prefix, of a brace pattern, or of a wids index (`shardlist`).

    Raises `ConfigurationError` where there is none, or one that is named is missing.
    """
    if uri.endswith(".json"):
        return _from_wids(uri)
    address = parse_address(uri)
    store = address.store
    if address.names is not None:
        return Source(store, _named(store, dict.fromkeys(address.names)))
    listed = [info for info in store.list() if info.key.endswith(".tar")]
    _require_names(store, [info.key for info in listed])
    tars = tuple(
        Tar(name=info.key, size=info.size, version=info.version)
        for info in listed
        if "/" not in info.key
    )
    if not tars:
        folders = sorted({info.key.rpartition("/")[0] for info in listed})
        more = f"; there are some in {', '.join(folders[:4])}: index each" if folders else ""
        raise ConfigurationError(f"{store.uri}: holds no .tar{more or _instead(store)}")
    return Source(store, tars)


def _instead(store: Store) -> str:
    """Describe what was found instead of tars, and what to do about it."""
    names = [info.key for info in itertools.islice(store.list(), _MAX_LISTED)]
    packed = [name for name in names if _COMPRESSED.search(name)]
    if packed:
        return f", but {packed[0]}, which is compressed; unpack it to a plain .tar first"
    if any(map(is_image_name, names)):
        return ", but images; make shards of them by `worker pack`"
    return "; check the address" if names else ", nor anything else; check the address"


def _require_names(store: Store, names: list[str]) -> None:
    """Raise `ConfigurationError` for a shard that no index can name."""
    for name in names:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise ConfigurationError(
                f"{store.uri}: the shard {name!a} has a name that is not plain UTF-8; rename it"
            )


def _from_wids(uri: str) -> Source:
    """Return the shards of {"shardlist": [{"url", "nsamples", "filesize"}]}; url is required."""
    root, _, name = uri.rpartition("/")
    store = parse_address(f"{root}/" if root else "./").store
    try:
        entries = json.loads(read_text(store.get(name)))["shardlist"]
        urls = [str(entry["url"]).removeprefix(store.uri).removeprefix("./") for entry in entries]
        facts = [(entry.get("nsamples"), entry.get("filesize")) for entry in entries]
    except ObjectMissing:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ConfigurationError(f"{uri}: no wids index, which has a shardlist of url") from None
    foreign = [url for url in urls if "://" in url or url.startswith("/")]
    if foreign:
        raise ConfigurationError(f"{uri}: {foreign[0]} is not below {store.uri}; move the index")
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
        more = f", nor are {len(missing) - 1} more that are named" if missing[1:] else ""
        raise ConfigurationError(
            f"{store.uri}{missing[0]}: no such object{more}; correct the pattern"
        )
    return tuple(
        Tar(name=name, size=known[name].size, version=known[name].version, samples=samples)
        for name, samples in names.items()
    )


def read_classes(uri: str) -> tuple[str, ...]:
    """The class names in a text file, one per line, in label order."""
    try:
        lines = [read_name(line) for line in read_text(read_uri(uri)).split("\n")]
    except ValueError as error:
        raise ConfigurationError(f"{uri}: {error}") from None
    names = tuple(filter(None, lines))
    if len(names) < 2:
        raise ConfigurationError(f"{uri}: needs two or more class names, one per line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigurationError(f"{uri}: names the class {twice!r} twice")
    return names


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """The result of indexing."""

    index: Index
    """The index."""
    empty: list[str]
    """Classes without an image."""
    left_out: list[str]
    """A line per problem."""
    passed_over: Counter[str]
    """Counts members that belong to no sample, by kind."""


def index_tars(
    source: Source,
    classes: tuple[str, ...] | None,
    label_field: str,
    *,
    error_budget: float,
    threads: int,
    max_pixels: int | None,
    advance: Callable[[int], None],
) -> Indexed:
    """Read every shard that no earlier run has, then write sidecars and index, and read them back.

    Args:
        source: The shards.
        classes: Class names in label order; None to find them in the labels.
        label_field: The label in `.json` members.
        error_budget: Share of the samples that may have problems and are left out.
        threads: Shards that are read side by side.
        max_pixels: Bound on the pixels of an image; one that cannot be decoded is a problem then.
            None to decode none.
        advance: Called with the bytes done, by one thread at a time.

    Raises:
        DataError: There are more problems; it names the first. Nothing is lost, and no index is
            written.
    """

    def scan(tar: Tar) -> Scan:
        return _scan(source.store, tar, label_field, max_pixels, note)

    def finish(tar: Tar) -> _Finished:
        """Read back what was staged, as all of it may be more than memory holds."""
        return _finish(source.store, tar, scan(tar), numbers)

    lock = threading.Lock()

    def note(done: int) -> None:
        with lock:
            advance(done)

    with ThreadPoolExecutor(threads) as pool:
        try:
            classes = classes or _find_classes(
                pool.map(lambda tar: _labels(scan(tar)), source.tars), _names_there(source.store)
            )
            numbers = {name: number for number, name in enumerate(classes)}
            advance = _ignore
            finished = list(pool.map(finish, source.tars))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        lines = [line for each in finished for line in each.lines]
        shards = tuple(each.shard for each in finished)
        _require_budget(source, lines, sum(shard.samples for shard in shards), error_budget)
        depth = depth_for(max((each.highest for each in finished), default=0))
        index = Index(classes=classes, shards=shards, depth=depth)
        write_index(source.store, index)
        list(pool.map(functools.partial(read_back, source.store), index.shards))
        list(pool.map(lambda tar: source.store.delete(_staged_name(tar)), source.tars))
    present = set().union(*(each.labels for each in finished))
    empty = [name for number, name in enumerate(classes) if number not in present]
    passed_over = sum((each.passed_over for each in finished), Counter[str]())
    return Indexed(index=index, empty=empty, left_out=lines, passed_over=passed_over)


def _names_there(store: Store) -> tuple[str, ...]:
    """Return the class names of the index that is there, which `pack` writes nowhere else."""
    try:
        return read_index(Address(store, None)).classes
    except ConfigurationError:
        return ()


def _ignore(done: int) -> None:
    """Report progress over bytes, less what was staged by an earlier run."""


def _labels(scan: Scan) -> set[str]:
    return {row.label for row in scan.rows}


class _Finished(NamedTuple):
    """A shard's entry, the class numbers in it, a line per problem, and what `Scan` counts."""

    shard: Shard
    labels: set[int]
    lines: list[str]
    passed_over: Counter[str]
    highest: int


def _finish(store: Store, tar: Tar, scan: Scan, numbers: dict[str, int]) -> _Finished:
    """Write the sidecar of a shard's sound samples."""
    sound = []
    problems = list(scan.problems)
    for row in scan.rows:
        number = _number(row.label, numbers)
        if number is None:
            problems.append(Problem(row.offset, f"class {row.label!r} is none of the classes"))
        else:
            sound.append((row, number))
    if tar.samples is not None and tar.samples != len(scan.rows) + len(scan.problems):
        text = f"holds {len(scan.rows)} samples where the older index says {tar.samples}"
        problems.append(Problem(scan.bytes, text))
    lines = [f"{store.uri}{tar.name}: byte {p.offset}: {p.text}" for p in problems]
    shard = write_sidecar(store, tar.name, scan, sound)
    return _Finished(shard, {number for _, number in sound}, lines, scan.passed_over, scan.highest)


def _require_budget(source: Source, lines: list[str], found: int, error_budget: float) -> None:
    if len(lines) > error_budget * (found + len(lines)):
        head = (
            f"{source.store.uri}: {count(len(lines), 'problem')}, more than --error-budget "
            f"{error_budget:g} allows; no index was written"
        )
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise DataError("\n  ".join([head, *lines[:_SHOWN], *more]))
    if not found:
        raise DataError(f"{source.store.uri}: holds no sound sample")


def _look(max_pixels: int, image: bytes) -> None:
    """Decode an image as training would; raises `Unsound` if that fails."""
    try:
        decode(memoryview(image), ImageSpec(max_pixels))
    except BadSample as error:
        raise Unsound(f"has an image that {error}") from None


def _scan(
    store: Store, tar: Tar, label_field: str, max_pixels: int | None, note: Callable[[int], None]
) -> Scan:
    """Return what a shard holds, as staged by an earlier run or by reading it.

    A malformed one is not staged, so that it is read again when it may have been repaired.
    """
    try:
        staged = _decode_staged(store.get(_staged_name(tar)), tar, label_field, max_pixels)
    except WorkerError as error:
        if not isinstance(error, ObjectMissing):
            raise
        staged = None
    except Exception:  # of damaged bytes, zipfile and numpy raise whatever their parsers meet
        staged = None
    if staged:
        note(tar.size)
        return staged

    def fetch(start: int, stop: int) -> bytes:
        data = store.get(tar.name, start, stop)
        note(len(data))
        return data

    look = functools.partial(_look, max_pixels) if max_pixels else None
    scan = scan_shard(fetch, tar.size, label_field, look)
    if not scan.problems:
        store.put(_staged_name(tar), _encode_staged(scan, tar, label_field, max_pixels))
    return scan


def _find_classes(labels_of_shards: Iterable[set[str]], known: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers up to the largest where all labels are numbers, else the sorted names.

    For numbers there may be names: those of the index that is replaced, if it has so many.
    """
    labels = set().union(*labels_of_shards)
    numbers = {label for label in labels if _NUMBER.fullmatch(label)}
    numbers = {label for label in numbers if int(label) < _MAX_CLASSES}
    if numbers and numbers != labels:
        raise DataError(
            f"the labels are class numbers ({min(numbers)}) and others ({min(labels - numbers)}); "
            "correct them or give --classes"
        )
    if not numbers:
        return tuple(sorted(labels))
    count = 1 + max(map(int, labels))
    return known if count <= len(known) else tuple(map(str, range(count)))


def _number(label: str, numbers: dict[str, int]) -> int | None:
    if label in numbers:
        return numbers[label]
    return int(label) if _NUMBER.fullmatch(label) and int(label) < len(numbers) else None


def _staged_name(tar: Tar) -> str:
    return f"{tar.name}.scan.npz"


def _encode_staged(scan: Scan, tar: Tar, label_field: str, max_pixels: int | None) -> bytes:
    labels = sorted({row.label for row in scan.rows})
    numbers = {label: number for number, label in enumerate(labels)}
    rows = [(*row[:-1], numbers[row.label]) for row in scan.rows]
    facts = {
        "version": _STAGED_VERSION,
        "label_field": label_field,
        "max_pixels": max_pixels,
        "tar": tar.version,
        "bytes": scan.bytes,
        "sha256": scan.sha256,
        "labels": labels,
        "passed_over": scan.passed_over,
        "highest": scan.highest,
    }
    buffer = io.BytesIO()
    np.savez(buffer, rows=np.array(rows, dtype=_ROW_DTYPE), facts=np.array(json.dumps(facts)))
    return buffer.getvalue()


def _decode_staged(data: bytes, tar: Tar, label_field: str, max_pixels: int | None) -> Scan | None:
    with np.load(io.BytesIO(data), allow_pickle=False) as staged:
        facts = json.loads(staged["facts"].item())
        rows = staged["rows"].tolist()
    expected = (_STAGED_VERSION, tar.size, tar.version, label_field)
    if (facts["version"], facts["bytes"], facts["tar"], facts["label_field"]) != expected:
        return None
    if max_pixels and facts["max_pixels"] != max_pixels:
        return None
    return Scan(
        bytes=facts["bytes"],
        sha256=facts["sha256"],
        rows=[SampleRow._make((*row[:5], facts["labels"][row[5]])) for row in rows],
        passed_over=Counter(facts["passed_over"]),
        highest=facts["highest"],
    )
