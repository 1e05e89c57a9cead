"""Image and compression formats, by suffix and by first bytes; this file does not import torch."""

import re
from collections.abc import Iterable, Mapping

IMAGE_SUFFIXES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
OTHER_IMAGES = frozenset(
    ("tif", "tiff", "bmp", "gif", "heic", "heif", "avif", "jp2", "dcm", "ppm", "pgm")
)
"""Suffixes of unsupported image formats; such images have to be converted."""
_COMPRESSED: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


_ARCHIVE = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4)|zip)$", re.IGNORECASE)
UNPACK = "unpack it to a plain .tar first"


def compressed_among(names: Iterable[str]) -> str:
    """Return a remark on the first name of a compressed archive; empty if there is none."""
    found = next((name for name in names if _ARCHIVE.search(name)), None)
    return f"{found}, which is compressed; {UNPACK}" if found else ""


def is_image_name(name: str) -> bool:
    """Return whether a file with this name is packed, indexed and classified."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and "." in name


def compression_of(head: bytes) -> str | None:
    """Return the name of the compression that a file's first bytes indicate, if any."""
    return next((name for mark, name in _COMPRESSED.items() if head.startswith(mark)), None)
