"""Rows, which hold the facts about each image of a unit that has been read.

The rows of a unit are staged as one object, without pixels. Encoded images that the source cannot
cheaply deliver again are staged beside them, in chunks sorted in the order of the final shards.
"""

import io
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from worker.array_files import load_arrays

_NUMBERS = np.dtype(
    [
        ("bytes", "<u8"),
        ("original_bytes", "<u8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("digest_high", "<u8"),
        ("digest_low", "<u8"),
        ("perceptual", "<u8"),
        ("content", "<u8"),
        ("chunk", "<i4"),
        ("offset", "<u8"),
        ("resized", "?"),
    ]
)
_LOW = (1 << 64) - 1


class Row(NamedTuple):
    """An image of the source; `bad` says why it cannot be used and is empty for a sound one."""

    key: str
    label: str
    split: str = ""
    group: str = ""
    bad: str = ""
    suffix: str = ""
    bytes: int = 0
    """Size of the image as it will be stored."""
    original_bytes: int = 0
    width: int = 0
    height: int = 0
    digest: int = 0
    """See `Checked.digest`."""
    perceptual: int = 0
    """See `Checked.perceptual`."""
    content: int = 0
    """The xxh3-64 of the image as it will be stored."""
    chunk: int = -1
    """Number of the staged chunk that holds the image; -1 if the source has to be read again."""
    offset: int = 0
    """Where it begins in the chunk."""
    resized: bool = False
    place: str = ""
    """Path of the file of a bad image in the source; empty if it has none."""

    @property
    def name(self) -> str:
        """Its name in messages: the path of its file, or else its key."""
        return self.place or self.key


_TEXTS = ("key", "label", "split", "group", "bad", "suffix", "place")


@dataclass(kw_only=True)
class UnitRows:
    """The rows of a unit, in the order of the source."""

    rows: list[Row]
    passed_over: dict[str, int] = field(default_factory=dict)
    """Number of entries that are not images of the set, by kind."""

    def encode(self) -> bytes:
        """Return the rows as bytes that `decode` can read."""
        numbers = np.array(
            [
                (
                    row.bytes,
                    row.original_bytes,
                    row.width,
                    row.height,
                    row.digest >> 64,
                    row.digest & _LOW,
                    row.perceptual,
                    row.content,
                    row.chunk,
                    row.offset,
                    row.resized,
                )
                for row in self.rows
            ],
            dtype=_NUMBERS,
        )
        texts: dict[str, Any] = {name: [getattr(r, name) for r in self.rows] for name in _TEXTS}
        texts["passed_over"] = self.passed_over
        # Escaped to ASCII, so that any text can be stored, lone surrogates of file names included.
        data = np.frombuffer(json.dumps(texts).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, numbers=numbers, texts=data)
        return buffer.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> "UnitRows":
        """Return the rows that `encode` has encoded; on other bytes, it may raise anything."""
        arrays = load_arrays(data)
        texts, numbers = json.loads(arrays["texts"].tobytes()), arrays["numbers"].tolist()
        columns = zip(*(texts[name] for name in _TEXTS), numbers, strict=True)
        rows = [
            Row(
                **dict(zip(_TEXTS, words, strict=True)),
                bytes=n[0],
                original_bytes=n[1],
                width=n[2],
                height=n[3],
                digest=n[4] << 64 | n[5],
                perceptual=n[6],
                content=n[7],
                chunk=n[8],
                offset=n[9],
                resized=n[10],
            )
            for *words, n in columns
        ]
        return cls(rows=rows, passed_over=texts["passed_over"])
