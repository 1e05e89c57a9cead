"""Image and compression formats, by suffix and by first bytes; this file does not import torch."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from worker.logs import count

IMAGE_SUFFIXES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
MAX_IMAGE_BYTES = 1 << 28
"""The size of the largest file that is read as an image: 256 MiB."""
OTHER_IMAGES = frozenset(
    ("tif", "tiff", "bmp", "gif", "heic", "heif", "avif", "jp2", "dcm", "ppm", "pgm")
)
"""Suffixes of unsupported image formats; such images have to be converted."""
_CONVERT = "convert it"
_FOREIGN: Sequence[tuple[bytes, str, str]] = (
    (rb"GIF8", "a GIF", _CONVERT),
    (rb"II\*\0|MM\0\*", "a TIFF", _CONVERT),
    (rb"BM", "a BMP", _CONVERT),
    (rb".{4}ftyp(heic|heix|mif1)", "a HEIC image", _CONVERT),
    (rb".{4}ftypavif", "an AVIF image", _CONVERT),
    (rb"%PDF", "a PDF", _CONVERT),
    (rb"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull`"),
    (rb"\s*<", "a web page or XML", "download the image itself"),
)
"""Other files that go by the name of an image: first bytes, name, remedy."""
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


def describe_compressed(names: Iterable[str]) -> list[str]:
    """Return a line that counts the compressed archives among names; none if there are none."""
    found = [name for name in names if _ARCHIVE.search(name)]
    if not found:
        return []
    what = count(len(found), "compressed archive")
    return [f"left out: {what}, such as {found[0]}; unpack to plain .tar files first"]


def describe_left_out(names: Iterable[str]) -> list[str]:
    """Return a line for each unsupported image format among names, with its count and a remedy."""
    found = Counter(name.rpartition(".")[2].lower() for name in names)
    return [
        f"left out: {count(found[suffix], f'.{suffix} image')}; convert to JPEG, PNG or WebP"
        for suffix in sorted(OTHER_IMAGES & found.keys())
    ]


def is_image_name(name: str) -> bool:
    """Return whether a file with this name is packed, indexed and classified."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and "." in name


def not_an_image(head: bytes) -> str:
    """Return `not a JPEG, …`, with the true format and a remedy if a file's first bytes show it."""
    text = "not a JPEG, PNG or WebP image"
    for pattern, name, remedy in _FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            return f"{text}, but {name}; {remedy}"
    return text


def compression_of(head: bytes) -> str | None:
    """Return the name of the compression that a file's first bytes indicate, if any."""
    return next((name for mark, name in _COMPRESSED.items() if head.startswith(mark)), None)
