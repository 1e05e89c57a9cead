"""An image folder as shards plus index: planned purely, written in parallel, repeatable."""

import io
import json
import tarfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.data.index import INDEX_NAME, Index, Shard, write_sidecar
from worker.data.plan import keyed_hash
from worker.data.shard import IMAGE_SUFFIXES, SIGNATURES, scan_shard
from worker.errors import ConfigurationError
from worker.store import Store

_SPLITS = ("train", "val")


@dataclass(frozen=True)
class ImageFile:
    """One image to pack: its file, its key in the tar, its label and its size in bytes."""

    path: Path
    key: str
    label: int
    bytes: int


@dataclass(frozen=True)
class Split:
    """One data set to write: `name` is `train`, `val` or empty for a folder without splits."""

    name: str
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    skipped: int


def find_splits(folder: Path) -> list[Split]:
    """The data sets of an image folder: `train/` and `val/`, or one tree, of a folder per class.

    Labels follow the sorted class names of `train/`. Raises `ConfigurationError` for a folder
    without images, and for a class in `val/` that `train/` lacks.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such folder")
    names = [name for name in _SPLITS if (folder / name).is_dir()]
    if not names:
        return [_require_every_class(folder, _scan("", folder, _class_names(folder)))]
    classes = _class_names(folder / names[0])
    for name in names[1:]:
        unknown = set(_class_names(folder / name)) - set(classes)
        if unknown:
            raise ConfigurationError(
                f"{folder / name}: class {min(unknown)!r} is not in {folder / names[0]}"
            )
    splits = [_scan(name, folder / name, classes) for name in names]
    _require_every_class(folder / names[0], splits[0])
    return splits


def _require_every_class(folder: Path, split: Split) -> Split:
    """A class without pictures would be an output that nothing trains."""
    present = {file.label for file in split.files}
    for label, name in enumerate(split.classes):
        if label not in present:
            raise ConfigurationError(f"{folder / name}: holds no images; add some or remove it")
    return split


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not names:
        raise ConfigurationError(f"{folder}: holds no class folders; it needs one folder per class")
    return tuple(names)


def _scan(name: str, folder: Path, classes: tuple[str, ...]) -> Split:
    files: list[ImageFile] = []
    keys: set[str] = set()
    skipped = 0
    for label, class_name in enumerate(classes):
        for path in sorted((folder / class_name).rglob("*")):
            if not path.is_file() or path.name.startswith("."):
                continue
            if path.suffix.lower().removeprefix(".") not in IMAGE_SUFFIXES:
                skipped += 1
                continue
            key = path.relative_to(folder).with_suffix("").as_posix().replace(".", "_")
            if key in keys:  # a.jpg beside a.png
                key += f"_{path.suffix[1:]}_{len(keys)}"
            keys.add(key)
            files.append(ImageFile(path, key, label, path.stat().st_size))
    if not files:
        raise ConfigurationError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return Split(name, classes, tuple(files), skipped)


def plan_shards(files: Sequence[ImageFile], shard_bytes: int, seed: int) -> list[list[ImageFile]]:
    """Shuffle the files and cut them into shards of about `shard_bytes`, at least one file each.

    A pure function: the same files and seed give the same shards. Shuffling here spares training a
    buffer large enough to mix the classes.
    """
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
    seed: int,
    threads: int,
    advance: Callable[[], None],
) -> Index:
    """Write the shards of one split and then its index, and return that.

    `advance` is told of every file done, by one thread at a time. The index comes last: a
    data set without one does not exist, so an interrupted pack is never taken for a whole one.
    """
    shards = plan_shards(split.files, shard_bytes, seed)
    store.delete(INDEX_NAME)
    lock = threading.Lock()

    def note() -> None:
        with lock:
            advance()

    def write(number: int) -> Shard:
        return _write_shard(store, f"shard-{number:06d}.tar", shards[number], note)

    with ThreadPoolExecutor(threads) as pool:
        try:
            written = tuple(pool.map(write, range(len(shards))))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    index = Index(classes=split.classes, shards=written)
    kept = {name for shard in written for name in (shard.name, shard.sidecar)}
    for info in list(store.list("shard-")):
        if info.key not in kept and info.key.endswith((".tar", ".samples.npy")):
            store.delete(info.key)
    store.put(INDEX_NAME, json.dumps(index.model_dump(), indent=1).encode())
    return index


def _write_shard(
    store: Store, name: str, files: Sequence[ImageFile], note: Callable[[], None]
) -> Shard:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in files:
            _add(tar, f"{file.key}.cls", str(file.label).encode())
            _add(tar, f"{file.key}{file.path.suffix.lower()}", _read(file.path))
            note()
    data = buffer.getvalue()
    scan = scan_shard(lambda start, stop: data[start:stop], len(data))
    if scan.problems:
        raise ConfigurationError(f"{files[0].path.parent}: {scan.problems[0].text}")
    store.put(name, data)
    return write_sidecar(store, name, scan, [(row, int(row.label)) for row in scan.rows])


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults carry no time and no owner
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    if not data.startswith(SIGNATURES):
        raise ConfigurationError(f"{path}: not a JPEG, PNG or WebP image; repair or remove it")
    return data
