"""16-bit PNGs, which often use fewer bits: X-ray devices and microscopes write 12, for example."""

import io
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTH_AT, _CHUNKS_AT = 24, 8
_DEEP = 16
_CHANNELS = {2: 3, 4: 2, 6: 4}  # by color type, for those that Pillow reduces to 8 bits
_MAX_BYTES = 1 << 30
_MAX_PIXELS = 1 << 26
_MAX_FILTER = 4

Samples = npt.NDArray[np.uint16]


def is_deep(data: bytes | bytearray | memoryview) -> bool:
    """Return whether the image is a PNG with 16 bits per sample."""
    head = bytes(data[: _DEPTH_AT + 1])
    return len(head) > _DEPTH_AT and head.startswith(_SIGNATURE) and head[_DEPTH_AT] == _DEEP


def deep_pixels(image: Image.Image, data: memoryview, depth: int) -> npt.NDArray[np.uint8]:
    """Return a 16-bit PNG as RGB, [H, W, 3], keeping the upper 8 of the bits in use.

    The number of bits in use is the one declared by the sBIT chunk (PNG, 11.3.2.7), or else
    `depth`. If values need more bits than declared, they were scaled up to 16 bits, as the standard
    requires.

    Args:
        image: The image, loaded by Pillow.
        data: The bytes of the image.
        depth: Bits in use if the image does not declare them.

    Raises:
        ValueError: The bytes are not a complete image.
    """
    samples = _samples(image, data)
    declared = _declared_depth(data)
    bits = declared or depth
    if declared and samples.max(initial=0) >> declared:
        bits = _DEEP
    # Values beyond an assumed depth saturate instead of wrapping around.
    upper = np.minimum(samples >> (bits - 8), 255).astype(np.uint8)
    return np.repeat(upper.transpose(1, 2, 0), 3 // len(upper), axis=2)


def highest_sample(data: bytes) -> int:
    """Return the highest value in a 16-bit PNG that declares no depth; 0 for any other image.

    Raises whatever Pillow raises if the bytes are not a complete image.
    """
    if not is_deep(data) or _declared_depth(memoryview(data)):
        return 0
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.width * image.height > _MAX_PIXELS:  # training reports it
            return 0
        image.load()
        return int(_samples(image, memoryview(data)).max(initial=0))


def _samples(image: Image.Image, data: memoryview) -> Samples:
    """Return the color channels, [1 or 3, H, W], without alpha."""
    # Pillow keeps 16 bits only for grayscale; the other color types are decoded again, by
    # torchvision.
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)[None]
    # They take seconds to import, and commands that only look at headers do without them.
    import torch
    from torchvision.io import ImageReadMode, decode_png

    clean = torch.frombuffer(bytearray(_well_formed(data)), dtype=torch.uint8)
    samples: Samples = decode_png(clean, ImageReadMode.UNCHANGED).numpy()
    return samples[:3] if len(samples) >= 3 else samples[:1]


def _well_formed(data: memoryview) -> bytes:
    """Return the image as a well-formed PNG; libpng can crash on a malformed one.

    Raises `ValueError` if there is too little or too much data. Interlaced images, which devices
    with 16-bit output do not write, are rejected.
    """
    parts = dict.fromkeys((b"IHDR", b"IDAT"), b"")
    # A chunk has a length (of the data alone), type, data and CRC: 12 bytes plus the data. CRCs
    # are not compared: the chunks are written anew below, with their own.
    at = _CHUNKS_AT
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), bytes(data[at + 4 : at + 8])
        if kind in parts:
            parts[kind] += bytes(data[at + 8 : at + 8 + length])
        at += 12 + length
    head = parts[b"IHDR"][:13]
    # IHDR: width, height, bit depth, color type at 9, then compression, filter and interlace
    # methods, which must be 0.
    channels = _CHANNELS.get(head[9]) if len(head) == 13 else None
    if channels is None or head[10:] != b"\0\0\0":
        raise ValueError("a 16-bit PNG of an unsupported kind")
    width, height = int.from_bytes(head[:4]), int.from_bytes(head[4:8])
    # Each row starts with a byte for its filter type; samples are two bytes.
    row = 1 + width * channels * 2
    if not 0 < row * height <= _MAX_BYTES:
        raise ValueError("a PNG of an unsupported size")
    try:
        # Limited to the expected size: a small file could otherwise expand to exhaust the memory.
        rows = zlib.decompressobj().decompress(parts[b"IDAT"], row * height)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(rows) < row * height or max(rows[::row]) > _MAX_FILTER:
        raise ValueError("a PNG with incomplete or invalid data")
    # Level 1, the fastest: the result is decoded right away and never stored.
    body = (b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")
    return _SIGNATURE + b"".join(_chunk(kind, part) for kind, part in body)


def _chunk(kind: bytes, part: bytes) -> bytes:
    return len(part).to_bytes(4) + kind + part + zlib.crc32(kind + part).to_bytes(4)


def _declared_depth(data: memoryview) -> int:
    """Return the number of significant bits that the file declares; 0 if none, or not plausible."""
    at = _CHUNKS_AT
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), bytes(data[at + 4 : at + 8])
        if kind == b"sBIT" and 1 <= length <= 4:
            # One byte per channel: gray, gray and alpha, RGB, or RGBA. Alpha is dropped, so its
            # depth does not matter.
            colors = bytes(data[at + 8 : at + 8 + (3 if length >= 3 else 1)])
            return max(colors) if 8 <= max(colors) <= _DEEP else 0
        # The standard puts sBIT before these chunks, so the search can end here.
        if kind in (b"IDAT", b"PLTE", b"IEND"):
            return 0
        at += 12 + length
    return 0
