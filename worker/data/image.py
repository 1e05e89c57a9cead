"""Encoded images as upright RGB pixels.

libjpeg-turbo by way of simplejpeg for ordinary JPEGs, which keep the cores busy; Pillow for all
the rest: PNG, WebP, CMYK, palettes, alpha, 16 bits, and JPEGs that libjpeg complains about.
"""

import functools
import io
import threading
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from worker.data.reader import BadSample
from worker.errors import first_line

Pixels = npt.NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "WEBP")
_START = b"\xff\xd8"
_ORIENTATION = 0x0112
_EXIF, _COMMENT, _APPLICATION = 0xE1, 0xFE, range(0xE0, 0xF0)
FAST_COLORS = ("YCbCr", "RGB", "Gray")

# Our own bound is exact, is checked before any pixel is decoded, and holds for every format.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module="PIL")  # of EXIF and palettes: once per picture, and vain

_local = threading.local()


def decode(data: memoryview, max_pixels: int) -> Tensor:
    """The image as uint8 RGB [3, H, W], channels last, upright as its EXIF orientation says.

    The tensor may be overwritten by this thread's next call. Alpha is dropped, and of 16 bits the
    upper 8 are kept. Raises `BadSample` where the bytes are no whole image or would unpack into
    more than `max_pixels`.
    """
    if bytes(data[:2]) == _START:
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            _require_size(width, height, max_pixels)
            if colors in FAST_COLORS:
                pixels = simplejpeg.decode_jpeg(data, buffer=_buffer(height * width * 3))
                return _tensor(_upright(pixels, orientation(data)))
        except ValueError:
            pass  # libjpeg warns of things that leave the image whole; Pillow tells them apart
    return _tensor(_decode_any(data, max_pixels))


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _require_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadSample(
            "too_large",
            f"{width} x {height} pixels are more than data.max_pixels, {max_pixels}, allows",
        )


def _buffer(size: int) -> bytearray:
    """Memory of this thread that is there already: fresh pages would cost a tenth of a decode."""
    buffer: bytearray = getattr(_local, "buffer", bytearray())
    if len(buffer) < size:
        buffer = _local.buffer = bytearray(size)
    return buffer


def _decode_any(data: memoryview, max_pixels: int) -> Pixels:
    if bytes(data[:4]) == b"RIFF":  # Pillow unpacks the canvas of a WebP before it tells its size
        _require_size(*_webp_size(data), max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _require_size(*image.size, max_pixels)
            image.load()
            turn = _valid(image.getexif)
            if image.mode.startswith("I"):
                upper = (np.asarray(image) >> 8).astype(np.uint8)
                return _upright(np.repeat(upper[..., None], 3, axis=2), turn)
            return _upright(np.array(image.convert("RGB")), turn)
    except BadSample:
        raise
    except UnidentifiedImageError:
        raise BadSample("undecodable", "is not a JPEG, PNG or WebP image") from None
    except Exception as error:  # of hostile bytes, Pillow raises whatever its parsers meet
        reason = first_line(error)
        raise BadSample("undecodable", f"cannot be decoded ({reason})") from None


def _webp_size(data: memoryview) -> tuple[int, int]:
    """Width and height from the first chunk (RFC 9649); 0 where there is none of the known ones."""
    head = bytes(data[12:30]).ljust(18, b"\0")
    if head[:4] == b"VP8X":
        return 1 + int.from_bytes(head[12:15], "little"), 1 + int.from_bytes(head[15:18], "little")
    if head[:4] == b"VP8L":
        bits = int.from_bytes(head[9:13], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    size = int.from_bytes(head[14:18], "little")
    return (size & 0x3FFF, size >> 16 & 0x3FFF) if head[:4] == b"VP8 " else (0, 0)


def orientation(data: memoryview) -> int:
    """The EXIF orientation of a JPEG, 1 to 8 (CIPA DC-008, 4.6.4); 1 where it has none."""
    at = 2
    while at + 10 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker not in _APPLICATION and marker != _COMMENT:
            break
        if marker == _EXIF and bytes(data[at + 4 : at + 10]) == b"Exif\0\0":
            return _valid(functools.partial(_parse, bytes(data[at + 4 : at + 2 + length])))
        at += 2 + length
    return 1


def _parse(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(data)
    return exif


def _valid(read: Callable[[], Image.Exif]) -> int:
    """The orientation that EXIF tells; 1 where it is broken, which harms no pixel."""
    try:
        value = read().get(_ORIENTATION)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
