"""An index for existing tars, which are read once and left unchanged.

The scan of a shard is staged beside it until the entire index is written, so an interrupted run
can resume; class numbers are known only once all labels are.
"""

import functools
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from worker.data.class_names import find_classes, number_of
from worker.data.index import Address, Index, Shard, read_index, write_index
from worker.data.reader import BadSample
from worker.data.sample_table import write_table
from worker.data.shard_scan import Problem, Scan, depth_for, scan_shard
from worker.data.sidecar import write_sidecar
from worker.data.staged_scan import decode_staged, encode_staged, scan_name
from worker.data.tar_sample import Unsound
from worker.data.tar_source import Source, Tar
from worker.errors import ConfigurationError, DataError, WorkerError
from worker.logs import count
from worker.store import ObjectMissing, Store

_SHOWN, _SHOWN_REASONS = 20, 5


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """The result of indexing."""

    index: Index
    """The index."""
    empty: list[str]
    """Classes without any images."""
    left_out: list[str]
    """A line per problem."""
    passed_over: Counter[str]
    """Number of members that belong to no sample, by kind."""


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
    """Scan the shards; write the sidecars and the index, and read them back.

    Args:
        source: The shards.
        classes: Class names in label order; None to find them in the labels.
        label_field: The field of `.json` members that holds the label.
        error_budget: Share of the samples that may have problems; these are left out.
        threads: The number of shards to read in parallel.
        max_pixels: Maximum number of pixels in an image. If set, images are decoded, and one that
            cannot be decoded is a problem; None to skip decoding.
        advance: Called with the number of bytes processed, by one thread at a time.

    Raises:
        DataError: There are more problems than allowed (the message lists the first few), or
            there are no usable samples. No index is written, but staged scans are kept.
    """

    def scan(tar: Tar) -> Scan:
        return _scan(source.store, tar, label_field=label_field, max_pixels=max_pixels, note=note)

    def finish(tar: Tar) -> _Finished:
        """Finish a shard, rereading its scan, as all scans together may not fit in memory."""
        return _finish(source.store, tar, scan(tar), numbers)

    lock = threading.Lock()

    def note(done: int) -> None:
        with lock:
            advance(done)

    with ThreadPoolExecutor(threads) as pool:
        try:
            if not classes:
                labels = pool.map(lambda tar: _labels(scan(tar)), source.tars)
                classes = find_classes(labels, _names_there(source.store))
                # `note` looks `advance` up at each call, so the second pass reports nothing.
                advance = _ignore
            numbers = {name: number for number, name in enumerate(classes)}
            finished = list(pool.map(finish, source.tars))
        except BaseException:
            # Otherwise, leaving `with` would wait for every shard that is still queued.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        lines = [line for each in finished for line in each.lines]
        shards = tuple(each.shard for each in finished)
        reasons = sum((each.reasons for each in finished), Counter[str]())
        samples = sum(shard.samples for shard in shards)
        _require_budget(source, lines, reasons, found=samples, error_budget=error_budget)
        depth = depth_for(max((each.highest for each in finished), default=0))
        table = write_table(source.store, shards)
        index = Index(classes=classes, shards=shards, depth=depth, table=table)
        write_index(source.store, index)
        # Last: until everything is written and read back, an interrupted run resumes from the
        # scans.
        list(pool.map(lambda tar: source.store.delete(scan_name(tar)), source.tars))
    present = set().union(*(each.labels for each in finished))
    empty = [name for number, name in enumerate(classes) if number not in present]
    passed_over = sum((each.passed_over for each in finished), Counter[str]())
    return Indexed(index=index, empty=empty, left_out=lines, passed_over=passed_over)


def _names_there(store: Store) -> tuple[str, ...]:
    """Return the class names of an existing index, the only place where `pack` writes them."""
    try:
        return read_index(Address(store, None)).classes
    except ConfigurationError:
        return ()


def _ignore(done: int) -> None:
    """Do nothing: the bytes that are read again have already been reported."""


def _labels(scan: Scan) -> set[str]:
    return {row.label for row in scan.rows}


class _Finished(NamedTuple):
    """A shard's index entry, its class numbers, a line per problem, and details of its `Scan`.

    `reasons` counts what is wrong with its samples.
    """

    shard: Shard
    labels: set[int]
    lines: list[str]
    reasons: Counter[str]
    passed_over: Counter[str]
    highest: int


def _finish(store: Store, tar: Tar, scan: Scan, numbers: dict[str, int]) -> _Finished:
    """Write the sidecar of a shard's sound samples."""
    sound = []
    problems = list(scan.problems)
    for row in scan.rows:
        number = number_of(row.label, numbers)
        if number is None:
            problems.append(Problem(row.offset, f"class {row.label!r} is not among the classes"))
        else:
            sound.append((row, number))
    if tar.samples is not None and tar.samples != len(scan.rows) + len(scan.problems):
        text = f"holds {len(scan.rows)} samples, but the wids index says {tar.samples}"
        problems.append(Problem(scan.bytes, text))
    lines = [f"{store.uri}{tar.name}: byte {p.offset}: {p.text}" for p in problems]
    shard = write_sidecar(store, tar.name, scan, sound)
    return _Finished(
        shard=shard,
        labels={number for _, number in sound},
        lines=lines,
        reasons=Counter(p.reason for p in problems if p.reason),
        passed_over=scan.passed_over,
        highest=scan.highest,
    )


def _require_budget(
    source: Source, lines: list[str], reasons: Counter[str], *, found: int, error_budget: float
) -> None:
    if len(lines) > error_budget * (found + len(lines)):
        head = (
            f"{source.store.uri}: {count(len(lines), 'problem')}, more than --error-budget "
            f"{error_budget:g} allows; no index was written"
        )
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        common = [
            f"{count(n, 'sample')}: {reason}"
            for reason, n in reasons.most_common(_SHOWN_REASONS)
            if n > 1
        ]
        raise DataError("\n  ".join([head, *common, *lines[:_SHOWN], *more]))
    if not found:
        raise DataError(f"{source.store.uri}: holds no usable samples")


def _look(max_pixels: int, image: bytes) -> None:
    """Decode an image as training would; raise `Unsound` if that fails."""
    # It takes seconds to import, and scanning does without it.
    from worker.data.decode_image import ImageSpec, decode

    try:
        decode(memoryview(image), ImageSpec(max_pixels))
    except BadSample as error:
        raise Unsound(f"has an image that {error}") from None


def _scan(
    store: Store, tar: Tar, *, label_field: str, max_pixels: int | None, note: Callable[[int], None]
) -> Scan:
    """Return the scan of a shard, staged by an earlier run or else made by reading the shard.

    A shard with problems is not staged, so that the next run reads it again in case it has been
    repaired.
    """
    try:
        staged = decode_staged(store.get(scan_name(tar)), tar, label_field, max_pixels)
    except WorkerError as error:
        if not isinstance(error, ObjectMissing):
            raise
        staged = None
    except Exception:  # on damaged bytes, zipfile and numpy may raise anything
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
        store.put(scan_name(tar), encode_staged(scan, tar, label_field, max_pixels))
    return scan
