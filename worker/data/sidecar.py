"""Sidecars: one table per shard, whose rows say where the bytes of each sample are."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from worker.array_files import load_array
from worker.data.index import Shard
from worker.data.shard_scan import Scan
from worker.data.tar_sample import SampleRow
from worker.errors import first_line
from worker.store import Store

# 48 bytes a row: packed, so that there is no padding, and little-endian on any machine.
SIDECAR_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("digest", "<u8"),
        ("image_offset", "<u4"),
        ("image_length", "<u4"),
        ("key", "<u8"),
        ("group", "<u8"),
        ("label", "<i4"),
    ]
)
Sidecar = npt.NDArray[np.void]


def write_sidecar(
    store: Store, name: str, scan: Scan, sound: Sequence[tuple[SampleRow, int]]
) -> Shard:
    """Write the sidecar of a shard.

    Args:
        store: Where to write the sidecar.
        name: The name of the shard.
        scan: The scan of the shard.
        sound: Rows of the sound samples, each with its class number.

    Returns:
        The shard's entry for the index.
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


def decode_sidecar(data: bytes, shard: Shard, classes: int | None) -> Sidecar:
    """Return the sidecar of one shard, shape [samples].

    Args:
        data: The bytes of the sidecar.
        shard: The shard's entry in the index.
        classes: Number of classes; every label must be below it. None for no upper bound.

    Raises:
        ValueError: The bytes are not the sidecar that was indexed, or they do not match the index:
            there are too few or too many samples, samples overlap or extend beyond the shard's end,
            or labels are not valid class numbers.
    """
    if xxhash.xxh3_64_hexdigest(data) != shard.sidecar_digest:
        raise ValueError("it is not the sidecar that the index describes")
    try:
        sidecar = load_array(data)
    except Exception as error:  # on arbitrary bytes, numpy may raise anything
        raise ValueError(f"it is not a table ({first_line(error)})") from None
    if not isinstance(sidecar, np.ndarray) or sidecar.dtype != SIDECAR_DTYPE or sidecar.ndim != 1:
        raise ValueError("it is a table with different columns")
    if len(sidecar) != shard.samples:
        raise ValueError(f"it has {len(sidecar)} samples, but the index says {shard.samples}")
    _require_sound_rows(sidecar, shard, classes)
    return sidecar


def _require_sound_rows(sidecar: Sidecar, shard: Shard, classes: int | None) -> None:
    starts = sidecar["offset"].astype(np.float64)  # exact for any shard, and cannot overflow
    stops = starts + sidecar["length"]
    # Widened, since the sum of two uint32 could wrap around and pass the check.
    image_stops = sidecar["image_offset"].astype(np.int64) + sidecar["image_length"]
    # Rows are in the order of the shard, so comparing neighbors suffices.
    if (starts[1:] < stops[:-1]).any() or (len(stops) and stops[-1] > shard.bytes):
        raise ValueError("its samples overlap, or extend beyond the end of the shard")
    if (image_stops > sidecar["length"]).any():
        raise ValueError("an image extends beyond its sample")
    labels = sidecar["label"]
    if (labels < 0).any() or (classes is not None and (labels >= classes).any()):
        known = "any classes" if classes is None else f"the {classes} classes"
        raise ValueError(f"it has labels outside {known}")
