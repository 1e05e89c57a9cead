"""An index for tars that exist already: every shard is read once, and only the index is new.

What was learned of a shard is staged beside it until the whole index is written, so that an
interrupted run goes on where it was; class numbers are known only once all labels are.
"""

import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from worker.data.index import INDEX_NAME, Index, Shard, parse_address, write_sidecar
from worker.data.shard import Problem, Row, Scan, scan_shard
from worker.errors import ConfigurationError, DataError
from worker.logs import count
from worker.store import ObjectMissing, Store, read_uri

_SHOWN = 20
_STAGED_VERSION = 1
_MOST_CLASSES = 1 << 16  # a label far beyond is an id of something else
_ROW_DTYPE = np.dtype(
    [(name, "<u8") for name in Row._fields if name != "label"] + [("label", "<u4")]
)


@dataclass(frozen=True)
class Tar:
    """One shard to index; `samples` is what an older index says that it holds."""

    name: str
    size: int
    samples: int | None = None


@dataclass(frozen=True)
class Source:
    """The shards to index; the index will lie at the root of `store`."""

    store: Store
    tars: tuple[Tar, ...]


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
    tars = tuple(Tar(info.key, info.size) for info in listed if "/" not in info.key)
    if not tars:
        folders = sorted({info.key.rpartition("/")[0] for info in listed})
        more = f"; there are some in {', '.join(folders[:4])}: index each" if folders else ""
        raise ConfigurationError(f"{store.uri}: holds no .tar{more}")
    return Source(store, tars)


def _from_wids(uri: str) -> Source:
    """Those of {"shardlist": [{"url", "nsamples", "filesize"}]}, of which only url must be."""
    root, _, name = uri.rpartition("/")
    store = parse_address(f"{root}/" if root else "./").store
    try:
        entries = json.loads(store.get(name))["shardlist"]
        urls = [str(entry["url"]).removeprefix(store.uri).removeprefix("./") for entry in entries]
        facts = [(entry.get("nsamples"), entry.get("filesize")) for entry in entries]
    except ObjectMissing:
        raise
    except (ValueError, LookupError, TypeError, AttributeError):
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
    sizes = {info.key: info.size for info in store.list()}
    missing = [name for name in names if name not in sizes]
    if missing:
        more = f", nor are {len(missing) - 1} more that are named" if missing[1:] else ""
        raise ConfigurationError(f"{store.uri}{missing[0]}: no such object{more}")
    return tuple(Tar(name, sizes[name], samples) for name, samples in names.items())


def read_classes(uri: str) -> tuple[str, ...]:
    """The class names in a text file, one per line, in label order."""
    names = tuple(line.strip() for line in read_uri(uri).decode().splitlines() if line.strip())
    if len(names) < 2:
        raise ConfigurationError(f"{uri}: needs two or more class names, one per line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigurationError(f"{uri}: names the class {twice!r} twice")
    return names


def index_tars(
    source: Source,
    classes: tuple[str, ...] | None,
    label_field: str,
    error_budget: float,
    threads: int,
    advance: Callable[[int], None],
) -> tuple[Index, list[str], list[str]]:
    """Read every shard that no earlier run has, then write sidecars and index.

    `advance` is told of bytes done, by one thread at a time. Returns the index, the
    classes without an image, and a line per problem within the budget, the share of samples that
    may be left out. Raises `DataError`,
    naming the first problems, where there are more; nothing is lost, and no index is written.
    """

    def scan(tar: Tar) -> Scan:
        return _scan(source.store, tar, label_field, note)

    def finish(tar: Tar) -> tuple[Shard, set[int], list[str]]:
        """Read back what was staged, as all of it may be more than memory holds."""
        return _finish(source.store, tar, scan(tar), numbers)

    lock = threading.Lock()

    def note(done: int) -> None:
        with lock:
            advance(done)

    with ThreadPoolExecutor(threads) as pool:
        try:
            classes = classes or _find_classes(
                pool.map(lambda tar: _labels(scan(tar)), source.tars)
            )
            numbers = {name: number for number, name in enumerate(classes)}
            advance = _ignore
            finished = list(pool.map(finish, source.tars))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        index = Index(classes=classes, shards=tuple(shard for shard, _, _ in finished))
        lines = [line for _, _, lines in finished for line in lines]
        _require_budget(source, lines, index.samples, error_budget)
        source.store.put(INDEX_NAME, json.dumps(index.model_dump(), indent=1).encode())
        list(pool.map(lambda tar: source.store.delete(_staged_name(tar)), source.tars))
    present = set().union(*(found for _, found, _ in finished))
    empty = [name for number, name in enumerate(classes) if number not in present]
    return index, empty, lines


def _ignore(done: int) -> None:
    """What was staged has been counted."""


def _labels(scan: Scan) -> set[str]:
    return {row.label for row in scan.rows}


def _finish(
    store: Store, tar: Tar, scan: Scan, numbers: dict[str, int]
) -> tuple[Shard, set[int], list[str]]:
    """Write the sidecar of a shard's sound samples.

    Returns its entry, the class numbers in it, and a line per problem.
    """
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
    return write_sidecar(store, tar.name, scan, sound), {number for _, number in sound}, lines


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


def _scan(store: Store, tar: Tar, label_field: str, note: Callable[[int], None]) -> Scan:
    """What a shard holds, as staged by an earlier run or by reading it.

    A malformed one is not staged, so that it is read again when it may have been repaired.
    """
    try:
        staged = _decode_staged(store.get(_staged_name(tar)), tar, label_field)
    except (ObjectMissing, ValueError, LookupError, OSError, zipfile.BadZipFile):
        staged = None
    if staged:
        note(tar.size)
        return staged

    def fetch(start: int, stop: int) -> bytes:
        data = store.get(tar.name, start, stop)
        note(len(data))
        return data

    scan = scan_shard(fetch, tar.size, label_field)
    if not scan.problems:
        store.put(_staged_name(tar), _encode_staged(scan, label_field))
    return scan


def _find_classes(labels_of_shards: Iterable[set[str]]) -> tuple[str, ...]:
    """Numbers up to the largest where all labels are numbers, else the sorted names."""
    labels = set().union(*labels_of_shards)
    numbers = {label for label in labels if label.isdecimal() and int(label) < _MOST_CLASSES}
    if numbers and numbers != labels:
        raise DataError(
            f"the labels are class numbers ({min(numbers)}) and others ({min(labels - numbers)}); "
            "correct them or give --classes"
        )
    return tuple(map(str, range(1 + max(map(int, labels))))) if numbers else tuple(sorted(labels))


def _number(label: str, numbers: dict[str, int]) -> int | None:
    if label in numbers:
        return numbers[label]
    return int(label) if label.isdecimal() and int(label) < len(numbers) else None


def _staged_name(tar: Tar) -> str:
    return f"{tar.name}.scan.npz"


def _encode_staged(scan: Scan, label_field: str) -> bytes:
    labels = sorted({row.label for row in scan.rows})
    numbers = {label: number for number, label in enumerate(labels)}
    rows = [(*row[:-1], numbers[row.label]) for row in scan.rows]
    facts = {
        "version": _STAGED_VERSION,
        "label_field": label_field,
        "bytes": scan.bytes,
        "sha256": scan.sha256,
        "labels": labels,
    }
    buffer = io.BytesIO()
    np.savez(buffer, rows=np.array(rows, dtype=_ROW_DTYPE), facts=np.array(json.dumps(facts)))
    return buffer.getvalue()


def _decode_staged(data: bytes, tar: Tar, label_field: str) -> Scan | None:
    with np.load(io.BytesIO(data), allow_pickle=False) as staged:
        facts = json.loads(staged["facts"].item())
        rows = staged["rows"].tolist()
    expected = (_STAGED_VERSION, tar.size, label_field)
    if (facts["version"], facts["bytes"], facts["label_field"]) != expected:
        return None
    return Scan(
        facts["bytes"],
        facts["sha256"],
        [Row._make((*row[:5], facts["labels"][row[5]])) for row in rows],
    )
