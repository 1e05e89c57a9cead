"""Decoding of images into upright RGB pixels.

Ordinary JPEGs, which take most of the CPU time, are decoded by libjpeg-turbo through simplejpeg;
everything else (PNG, WebP, CMYK, palettes, alpha, JPEGs that libjpeg rejects), by Pillow.
"""

import io
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from worker.data.deep_png import deep_pixels, is_deep
from worker.data.image_formats import not_an_image
from worker.data.jpeg_header import count_scans, read_header
from worker.data.reader import BadSample
from worker.errors import first_line

Pixels = npt.NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "WEBP")
_START = b"\xff\xd8"
_ORIENTATION = 0x0112
_MAX_SCANS = 100  # of a progressive JPEG; each scan covers all pixels, and most files have ten
_MAX_WORK = 4  # pixels times scans, as a multiple of `max_pixels`; checked beyond 15 scans
# Pillow finds the orientation in EXIF or, failing that, in XMP ("tiff:Orientation").
_TELLS_ORIENTATION = re.compile(rb"Exif\0\0|Orientation")
MAX_PIXELS = 100_000_000
"""Default of `data.max_pixels`, for commands without a manifest."""
FAST_COLORS = ("YCbCr", "RGB", "Gray")

# Our own bound is exact, is checked before any pixel is decoded, and holds for every format.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings(
    "ignore", module="PIL"
)  # about EXIF and palettes: one per image, and of no use

_local = threading.local()


@dataclass(frozen=True)
class ImageSpec:
    """Decoding settings."""

    max_pixels: int
    """Largest number of pixels; images with more are bad samples."""
    depth: int = 16
    """Bits in use per channel of a 16-bit image, unless the image itself states the number."""


def decode(data: memoryview, spec: ImageSpec) -> Tensor:
    """Return the image as uint8 RGB [3, H, W], channels last, with EXIF orientation applied.

    The tensor may be overwritten by this thread's next call. Alpha is dropped; of 16-bit images,
    only the upper 8 of the bits in use are kept. Raises `BadSample` if the bytes are not a complete
    image or would take too much memory or time to decode.
    """
    if bytes(data[:2]) == _START:
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            require_bounds(data, width, height, spec.max_pixels)
            if colors in FAST_COLORS:
                pixels = simplejpeg.decode_jpeg(data, buffer=_buffer(height * width * 3))
                return _tensor(_upright(pixels, orientation(data)))
        except BadSample:
            raise
        except Exception:  # noqa: S110 -- Pillow reports why an image cannot be decoded
            pass
    return _tensor(_decode_any(data, spec))


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _require_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadSample(
            "too_large",
            f"has {width} x {height} pixels; data.max_pixels allows no more than {max_pixels}",
        )


def require_bounds(data: memoryview, width: int, height: int, max_pixels: int) -> None:
    """Refuse a JPEG that would take too much memory or time to decode.

    Args:
        data: The encoded image.
        width: Width according to its header, in pixels.
        height: Height according to its header, in pixels.
        max_pixels: The largest number of pixels that an image may have.

    Raises:
        BadSample: If it has too many pixels or too many scans.
    """
    _require_size(width, height, max_pixels)
    _require_few_scans(data, width * height, max_pixels)


def _require_few_scans(data: memoryview, pixels: int, max_pixels: int) -> None:
    """Refuse a JPEG with too many scans: a small file can hold thousands and take minutes."""
    scans = count_scans(data)
    if scans > _MAX_SCANS or (scans > 15 and scans * pixels > _MAX_WORK * max_pixels):
        raise BadSample("too_large", f"has {scans} scans of {pixels} pixels, too slow to decode")


def _buffer(size: int) -> bytearray:
    """Return this thread's reusable buffer: fresh pages would cost a tenth of the decode time."""
    buffer: bytearray = getattr(_local, "buffer", bytearray())
    if len(buffer) < size:
        buffer = _local.buffer = bytearray(size)
    return buffer


def _decode_any(data: memoryview, spec: ImageSpec) -> Pixels:
    if not data:
        raise BadSample("undecodable", "is empty")
    if bytes(data[:4]) == b"RIFF":  # Pillow decodes a WebP's canvas before reporting its size
        _require_size(*_webp_size(data), spec.max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _require_size(*image.size, spec.max_pixels)
            if image.format == "JPEG":
                _require_few_scans(data, image.width * image.height, spec.max_pixels)
            image.load()
            turn = _valid(image.getexif)
            if is_deep(data):  # Pillow would keep the upper 8 bits, used or not
                return _upright(deep_pixels(image, data, spec.depth), turn)
            return _upright(np.array(image.convert("RGB")), turn)
    except BadSample:
        raise
    except UnidentifiedImageError:
        raise BadSample("undecodable", f"is {not_an_image(bytes(data[:64]))}") from None
    except Exception as error:  # for hostile bytes, Pillow raises whatever its parsers raise
        reason = first_line(error)
        raise BadSample("undecodable", f"cannot be decoded ({reason})") from None


def _webp_size(data: memoryview) -> tuple[int, int]:
    """Return width and height from the first chunk (RFC 9649); zeros if its kind is unknown."""
    # Bytes 0 to 11 are "RIFF", the file size and "WEBP". In `head`, the chunk's type is at 0, its
    # size at 4 and its payload at 8.
    head = bytes(data[12:30]).ljust(18, b"\0")
    if head[:4] == b"VP8X":
        # Extended: flags (4 bytes), then canvas width - 1 and height - 1, 24 bits each.
        return 1 + int.from_bytes(head[12:15], "little"), 1 + int.from_bytes(head[15:18], "little")
    if head[:4] == b"VP8L":
        # Lossless: signature (1 byte), then width - 1 and height - 1, 14 bits each.
        bits = int.from_bytes(head[9:13], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    # Lossy: frame tag and start code (3 bytes each), then width and height, 14 bits each, both
    # followed by 2 bits of scaling (RFC 6386, 9.1).
    size = int.from_bytes(head[14:18], "little")
    return (size & 0x3FFF, size >> 16 & 0x3FFF) if head[:4] == b"VP8 " else (0, 0)


def orientation(data: memoryview) -> int:
    """Return the orientation of a JPEG, 1 to 8, as Pillow's `exif_transpose` would find it."""
    header = read_header(data)
    if not _TELLS_ORIENTATION.search(data[: header.size] if header else data):
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _valid(image.getexif)
    except Exception:  # for hostile bytes, Pillow raises whatever its parsers raise
        return 1


def _valid(read: Callable[[], Image.Exif]) -> int:
    """Return the orientation from EXIF; 1 if the EXIF is broken, as that affects no pixel."""
    try:
        value = read().get(_ORIENTATION)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    # Values 5 to 8 (EXIF tag 0x0112) have rows and columns swapped; flips then do the rest, as a
    # rotation by 90 degrees is a transposition and one flip.
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    # torch accepts no negative strides. Pixels that were not turned are returned without a copy.
    return np.ascontiguousarray(pixels)
