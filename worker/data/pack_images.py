"""Pack images into shards and an index, reproducibly and in parallel, and read them back."""

import io
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from worker.data.decode_image import ImageSpec, decode
from worker.data.epoch_plan import keyed_hash
from worker.data.error_budget import allowed
from worker.data.image_folder import ImageFile, Split, require_every_class
from worker.data.index import INDEX_NAME, Index, Shard, write_index
from worker.data.reader import BadSample
from worker.data.shard_scan import depth_for, scan_shard
from worker.data.sidecar import write_sidecar
from worker.data.verify_shards import verify_shards
from worker.errors import ConfigurationError, DataError, InfrastructureError
from worker.logs import count
from worker.store import Store


def find_bad(
    split: Split, threads: int, max_pixels: int, advance: Callable[[], None]
) -> dict[ImageFile, str]:
    """Decode all images of a split as training would; return the reason for each one that fails.

    Args:
        split: The images.
        threads: Number of images decoded in parallel.
        max_pixels: Larger images are bad.
        advance: Called for every finished file, by one thread at a time.
    """
    lock = threading.Lock()

    def look(file: ImageFile) -> str | None:
        try:
            decode(memoryview(_read(file.path)), ImageSpec(max_pixels))
        except BadSample as error:
            return str(error)
        except ConfigurationError:
            return "cannot be read; check its permissions"
        finally:
            with lock:
                advance()
        return None

    with ThreadPoolExecutor(threads) as pool:
        reasons = pool.map(look, split.files)
        return {f: reason for f, reason in zip(split.files, reasons, strict=True) if reason}


def without_bad(
    splits: Sequence[Split], bad: Sequence[Mapping[ImageFile, str]], error_budget: float | None
) -> list[Split]:
    """Return the splits without their bad files.

    Args:
        splits: The splits to pack.
        bad: The bad files of each split, and what is wrong with them.
        error_budget: Share of the files of each split that may be left out; None to allow none.

    Raises:
        DataError: More files are bad than allowed; the message lists those of all splits.
        ConfigurationError: A class of the first split would have no images left.
    """
    lines = [f"{file.path}: {reason}" for found in bad for file, reason in found.items()]
    excess = any(
        len(found) > allowed(error_budget or 0, len(split.files))
        for split, found in zip(splits, bad, strict=True)
    )
    if excess:
        remedy = "repair or remove them, or pass --bad skip"
        if error_budget is not None:
            remedy = f"more than --error-budget {error_budget:g} allows; repair or remove them"
        head = f"{count(len(lines), 'file')} cannot be decoded; {remedy}:"
        raise DataError("\n  ".join([head, *lines]))
    kept = [
        replace(split, files=tuple(file for file in split.files if file not in found))
        for split, found in zip(splits, bad, strict=True)
    ]
    if bad[0]:
        require_every_class(Path(splits[0].name), kept[0])
    return kept


def plan_shards(files: Sequence[ImageFile], shard_bytes: int, seed: int) -> list[list[ImageFile]]:
    """Shuffle files and cut them into shards.

    A pure function: the same files and seed give the same shards. Because of this shuffle,
    training needs no buffer large enough to mix the classes.

    Args:
        files: The images.
        shard_bytes: Approximate size of a shard, in bytes; each has at least one file.
        seed: Seed of the shuffle.

    Returns:
        The files of each shard.
    """
    # Sorting by keyed hashes gives the same shuffle with every version of numpy.
    order = np.argsort(keyed_hash(seed, np.arange(len(files))), kind="stable")
    shards: list[list[ImageFile]] = [[]]
    room = shard_bytes
    for number in order:
        file = files[number]
        if shards[-1] and file.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(file)
        room -= file.bytes
    return shards


def write_split(
    split: Split,
    store: Store,
    shard_bytes: int,
    *,
    seed: int,
    threads: int,
    advance: Callable[[], None],
    depth: int | None = None,
) -> Index:
    """Write the shards of one split, read them back, write its index, and return the index.

    The index comes last: a data set without one does not exist, so an interrupted pack is never
    mistaken for a complete one.

    Args:
        split: The images.
        store: Where the data set will be.
        shard_bytes: Approximate size of a shard, in bytes.
        seed: Decides the order of the images.
        threads: Number of shards written in parallel.
        advance: Called for every finished file, by one thread at a time.
        depth: The training set's depth (see `Index`), to use for this split as well; None to
            compute it.
    """
    shards = plan_shards(split.files, shard_bytes, seed)
    # First: the old index must not describe shards that are being replaced.
    store.delete(INDEX_NAME)
    lock = threading.Lock()

    def note() -> None:
        with lock:
            advance()

    def write(number: int) -> tuple[Shard, int]:
        return _write_shard(store, f"shard-{number:06d}.tar", shards[number], note)

    with ThreadPoolExecutor(threads) as pool:
        try:
            written = tuple(pool.map(write, range(len(shards))))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    shards_written = tuple(shard for shard, _ in written)
    depth = depth or depth_for(max(highest for _, highest in written))
    index = Index(classes=split.classes, shards=shards_written, depth=depth)
    kept = {name for shard in shards_written for name in (shard.name, shard.sidecar)}
    # An earlier pack may have had more shards, or other sidecars.
    for info in list(store.list("shard-")):
        if info.key not in kept and info.key.endswith((".tar", ".samples.npy")):
            store.delete(info.key)
    lines = verify_shards(store, index, threads, lambda _: None)
    if lines:
        raise InfrastructureError(f"does not read back as written: {lines[0]}; pack again")
    write_index(store, index)
    return index


def _write_shard(
    store: Store, name: str, files: Sequence[ImageFile], note: Callable[[], None]
) -> tuple[Shard, int]:
    """Write a shard and its sidecar; return its index entry and `Scan.highest`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in files:
            # Both members share a key and are adjacent, which makes them one sample to WebDataset
            # readers.
            _add(tar, f"{file.key}.cls", str(file.label).encode())
            _add(tar, f"{file.key}{_suffix(file)}", _read(file.path))
            note()
    data = buffer.getvalue()
    scan = scan_shard(lambda start, stop: data[start:stop], len(data))
    if scan.problems:
        raise ConfigurationError(f"{files[0].path.parent}: {scan.problems[0].text}")
    store.put(name, data)
    rows = [(row, int(row.label)) for row in scan.rows]
    return write_sidecar(store, name, scan, rows), scan.highest


def _suffix(file: ImageFile) -> str:
    """Return the suffix to use in the tar, one that WebDataset readers recognize."""
    suffix = file.path.suffix.lower()
    return ".jpg" if suffix in (".jfif", ".jpe") else suffix


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults carry no time and no owner
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
