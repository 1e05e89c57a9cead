"""The first pass of a pack: every unit of the source is read once, decoded and described."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import xxhash

from worker.data.reader import BadSample
from worker.errors import ConfigurationError
from worker.ingest.image_check import Checked, ImageOptions, check_image
from worker.ingest.plan import order_of
from worker.ingest.rows import Row, UnitRows
from worker.ingest.source import Item, Source
from worker.redaction import redacted
from worker.text import read_name

Advance = Callable[[int, int], None]
"""Called with the images and bytes just finished."""
_MAX_LABEL_CHARACTERS = 500
PutChunk = Callable[[int, bytes], None]
"""Stages a chunk, given its number and its contents."""


@dataclass
class _Chunk:
    """Encoded images that are waiting to be staged together."""

    number: int = 0
    size: int = 0
    waiting: list[tuple[int, bytes]] = field(default_factory=list)


def read_unit(
    source: Source,
    unit: int,
    options: ImageOptions,
    *,
    seed: int,
    chunk_bytes: int,
    put_chunk: PutChunk | None,
    advance: Advance,
) -> UnitRows:
    """Read a unit, and stage the images that cannot be read again cheaply.

    Args:
        source: The source.
        unit: The number of the unit.
        options: How images are checked and stored.
        seed: Seed of the shuffled order in which the images of a chunk are staged.
        chunk_bytes: Size at which a chunk is staged; bounds the memory in use.
        put_chunk: Stages a chunk; None for a dry run, which stages nothing.
        advance: Called after every image.

    Raises:
        DataError: If the unit as a whole is damaged.
    """
    rows: list[Row] = []
    chunk = _Chunk()
    for item in source.items(unit):
        row, checked, size = _look(item, options)
        if row.bad:  # an address may have a login or a signature, and what is bad is shown
            row = row._replace(place=redacted(row.place), bad=redacted(row.bad))
        rows.append(row)
        if checked and put_chunk and (checked.resized or not source.rereads):
            chunk.waiting.append((len(rows) - 1, checked.data))
            chunk.size += len(checked.data)
            if chunk.size >= chunk_bytes:
                _flush(chunk, rows, seed, put_chunk)
        advance(1, size)
    if put_chunk:
        _flush(chunk, rows, seed, put_chunk)
    return UnitRows(rows=rows, passed_over=source.left_over(unit))


def _look(item: Item, options: ImageOptions) -> tuple[Row, Checked | None, int]:
    """Return the row of an item, the image if it is sound, and the number of bytes read."""
    row = Row(
        key=item.key,
        label=item.label or "",
        split=item.split,
        group=item.group,
        place=item.place,
    )
    try:
        label = read_name(item.label or "")
    except ValueError as error:
        return row._replace(bad=f"has a label that {error}"), None, 0
    if not label:
        return row._replace(bad="has no label"), None, 0
    if len(label) > _MAX_LABEL_CHARACTERS:
        return row._replace(label="", bad=f"has a label of {len(label)} characters"), None, 0
    row, data = row._replace(label=label), b""
    try:
        data = item.load()
        checked = check_image(data, options)
    except BadSample as error:
        return row._replace(bad=str(error)), None, len(data)
    except ConfigurationError as error:
        return row._replace(bad=f"cannot be read: {error}"), None, len(data)
    row = row._replace(
        place="",  # only bad ones are named by it, and there may be millions of others
        suffix=checked.suffix,
        bytes=len(checked.data),
        original_bytes=len(data),
        width=checked.width,
        height=checked.height,
        digest=checked.digest,
        perceptual=checked.perceptual,
        content=xxhash.xxh3_64_intdigest(checked.data),
        resized=checked.resized,
    )
    return row, checked, len(data)


def _flush(chunk: _Chunk, rows: list[Row], seed: int, put_chunk: PutChunk) -> None:
    """Stage the waiting images in the order of the final shards.

    A shard is an interval of that order within its split, so its images lie close together in
    every chunk, and one request per chunk reads them.
    """
    if not chunk.waiting:
        return
    order = np.argsort(order_of([rows[at].key for at, _ in chunk.waiting], seed), kind="stable")
    parts, offset = [], 0
    for n in order.tolist():
        at, data = chunk.waiting[n]
        rows[at] = rows[at]._replace(chunk=chunk.number, offset=offset)
        parts.append(data)
        offset += len(data)
    put_chunk(chunk.number, b"".join(parts))
    chunk.number, chunk.size, chunk.waiting = chunk.number + 1, 0, []
