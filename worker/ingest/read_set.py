"""A data set as shown to a person: its facts, and some images of every class."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from worker.data.epoch_plan import keyed_hash
from worker.data.index import Address, Index, read_index
from worker.data.sample_keys import key_in
from worker.data.sidecar import Sidecar, decode_sidecar
from worker.errors import ConfigurationError
from worker.ingest.dataset_record import DatasetRecord, read_dataset_record
from worker.ingest.splits import SPLITS
from worker.layout import INDEX_NAME
from worker.store import ObjectMissing, Store, open_store

_SIDE = 144
_HEAD_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail of an image of a data set."""

    key: str
    """The key of its sample."""
    jpeg: str
    """The thumbnail, a JPEG in base64."""
    size: str
    """The size of the original, as text, or why there is no thumbnail."""


@dataclass(frozen=True, kw_only=True)
class ShownSplit:
    """A split of a data set."""

    name: str
    """Its name; empty if there is only one data set."""
    uri: str
    """Its address."""
    index: Index
    """Its index."""
    counts: tuple[int, ...]
    """Number of images by class."""
    pictures: Mapping[str, list[Picture]]
    """Some images of each class."""


@dataclass(frozen=True, kw_only=True)
class ShownSet:
    """The splits at an address, and the record of how they were made."""

    uri: str
    splits: tuple[ShownSplit, ...]
    record: DatasetRecord | None
    """None if the set was not made by `worker pack`."""


def read_set(uri: str, pictures: int) -> ShownSet:
    """Read the data sets at an address.

    Args:
        uri: Address of a data set, or of a folder of splits.
        pictures: How many images of each class and split to read.

    Raises:
        ConfigurationError: If there is no index.
    """
    stores = _stores(uri)
    splits = tuple(_read_split(name, store, pictures) for name, store in stores.items())
    if len({split.index.classes for split in splits}) > 1:
        raise ConfigurationError(
            f"{uri}: its splits have different classes; inspect each by itself"
        )
    record = read_dataset_record(next(iter(stores.values())))
    return ShownSet(uri=open_store(uri).uri, splits=splits, record=record)


def _stores(uri: str) -> dict[str, Store]:
    base = uri.rstrip("/")
    found = {
        name: store
        for name in ("", *SPLITS)
        if _has_index(store := open_store(f"{base}/{name}" if name else base))
    }
    if not found:
        raise ConfigurationError(f"{uri}: holds no {INDEX_NAME}; `worker pack` makes a data set")
    return found


def _has_index(store: Store) -> bool:
    try:
        return bool(store.get(INDEX_NAME, 0, 1))
    except ObjectMissing:
        return False


def _read_split(name: str, store: Store, pictures: int) -> ShownSplit:
    index = read_index(Address(store, None))
    tables = [decode_sidecar(store.get(s.sidecar), s, len(index.classes)) for s in index.shards]
    labels = np.concatenate([table["label"] for table in tables])
    shown = {}
    for label, class_name in enumerate(index.classes):
        ids = np.flatnonzero(labels == label)
        shown[class_name] = [
            _picture(store, index, tables, int(i)) for i in _some(ids, pictures, label)
        ]
    counts = np.bincount(labels, minlength=len(index.classes))
    return ShownSplit(
        name=name, uri=store.uri, index=index, counts=tuple(counts.tolist()), pictures=shown
    )


def _some(ids: npt.NDArray[np.int64], count: int, label: int) -> npt.NDArray[np.int64]:
    """Return some of the ids, drawn at random but always the same."""
    return ids[np.argsort(keyed_hash(label, ids), kind="stable")[:count]] if len(ids) else ids


def _picture(store: Store, index: Index, tables: list[Sidecar], sample: int) -> Picture:
    number, place = index.locate(sample)
    row = tables[number][place]
    start = int(row["offset"])
    data = store.get(index.shards[number].name, start, start + int(row["length"]))
    key = key_in(data[:_HEAD_BYTES]) or f"sample {sample}"
    image_data = data[int(row["image_offset"]) :][: int(row["image_length"])]
    try:
        image: Image.Image = Image.open(io.BytesIO(image_data))
        size = f"{image.width} x {image.height}"
        cast(Any, image).draft("RGB", (2 * _SIDE, 2 * _SIDE))
        image = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # on damaged bytes, Pillow may raise anything
        return Picture(key=key, jpeg="", size="cannot be decoded")
    buffer = io.BytesIO()
    ImageOps.fit(image, (_SIDE, _SIDE)).save(buffer, "JPEG", quality=80)
    return Picture(key=key, jpeg=base64.b64encode(buffer.getvalue()).decode(), size=size)
