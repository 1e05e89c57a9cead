"""Sidecars: a row per sample of a shard, and where its bytes are."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from worker.data.index import Shard
from worker.data.shard_scan import SampleRow, Scan
from worker.errors import InfrastructureError, first_line
from worker.store import ObjectMissing, Store

SIDECAR_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("digest", "<u8"),
        ("image_offset", "<u4"),
        ("image_length", "<u4"),
        ("label", "<i4"),
    ]
)
Sidecar = npt.NDArray[np.void]


def write_sidecar(
    store: Store, name: str, scan: Scan, sound: Sequence[tuple[SampleRow, int]]
) -> Shard:
    """Write the sidecar of a shard.

    Args:
        store: Where it is written.
        name: The name of the shard.
        scan: What was found in the shard.
        sound: Rows of the sound samples, each with its class.

    Returns:
        The entry of the shard in the index.
    """
    buffer = io.BytesIO()
    table = [(*row[:-1], label) for row, label in sound]
    np.save(buffer, np.array(table, dtype=SIDECAR_DTYPE), allow_pickle=False)
    data = buffer.getvalue()
    shard = Shard(
        name=name,
        bytes=scan.bytes,
        samples=len(sound),
        sha256=scan.sha256,
        sidecar_digest=xxhash.xxh3_64_hexdigest(data),
    )
    store.put(shard.sidecar, data)
    return shard


def read_back(store: Store, shard: Shard) -> None:
    """Raise `InfrastructureError` unless the sidecar of a shard is there as it was written."""
    try:
        decode_sidecar(store.get(shard.sidecar), shard, None)
    except (ObjectMissing, ValueError) as error:
        raise InfrastructureError(f"{store.uri}{shard.sidecar}: {error}; try again") from None


def decode_sidecar(data: bytes, shard: Shard, classes: int | None) -> Sidecar:
    """Return the sidecar of one shard, shape [samples].

    Args:
        data: Its bytes.
        shard: What the index says of it.
        classes: Number of classes, beyond which no label may be; None for what was just written.

    Raises:
        ValueError: It is not the one that was indexed, or does not fit the index: fewer or more
            samples, samples that overlap or lie beyond the shard's end, labels of no class.
    """
    if xxhash.xxh3_64_hexdigest(data) != shard.sidecar_digest:
        raise ValueError("it is not the one that the index describes")
    try:
        sidecar = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # of bytes by chance, numpy raises whatever its parsers meet
        raise ValueError(f"it is no table ({first_line(error)})") from None
    if not isinstance(sidecar, np.ndarray) or sidecar.dtype != SIDECAR_DTYPE or sidecar.ndim != 1:
        raise ValueError("it is a table of something else")
    if len(sidecar) != shard.samples:
        raise ValueError(f"it has {len(sidecar)} samples, the index {shard.samples}")
    _require_sound_rows(sidecar, shard, classes)
    return sidecar


def _require_sound_rows(sidecar: Sidecar, shard: Shard, classes: int | None) -> None:
    starts = sidecar["offset"].astype(np.float64)  # exact up to the largest shard, and no overflow
    stops = starts + sidecar["length"]
    image_stops = sidecar["image_offset"].astype(np.int64) + sidecar["image_length"]
    if (starts[1:] < stops[:-1]).any() or (len(stops) and stops[-1] > shard.bytes):
        raise ValueError("its samples overlap, or lie beyond the end of the shard")
    if (image_stops > sidecar["length"]).any():
        raise ValueError("an image lies outside of its sample")
    labels = sidecar["label"]
    if (labels < 0).any() or (classes is not None and (labels >= classes).any()):
        raise ValueError(f"it has labels that are none of the {classes} classes")
