"""A check of one image: decoded as in training, hashed, and scaled down if asked for."""

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from worker.data.decode_image import ImageSpec, decode
from worker.data.deep_png import is_deep
from worker.data.image_formats import SIGNATURES, not_an_image
from worker.data.reader import BadSample

Pixels = npt.NDArray[np.uint8]

_SUFFIXES = dict(zip(SIGNATURES, ("jpg", "png", "webp"), strict=True))
_HEAD_BYTES = 64
_HASHED_SIDE = 64
"""Shorter side, roughly, to which images are reduced before hashing; pHash uses 32 x 32."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Settings for checking and storing images."""

    max_pixels: int
    """Larger images are bad."""
    longest_side: int | None = None
    """Longest side of a stored image, in pixels; larger ones are scaled down. None for no limit."""
    quality: int = 90
    """JPEG quality of the images that are scaled down."""
    near: bool = True
    """Whether to compute perceptual hashes."""


class Checked(NamedTuple):
    """An image as it will be stored."""

    data: bytes
    """The encoded image."""
    suffix: str
    """Suffix of its member in the tar, recognized by the first bytes of the image."""
    resized: bool
    """Whether it was encoded anew."""
    width: int
    """Its original width, in pixels."""
    height: int
    """Its original height, in pixels."""
    digest: int
    """The xxh3-128 of its decoded pixels, so that copies are found whatever their encoding."""
    perceptual: int
    """Its 64-bit pHash (https://www.phash.org); 0 if not computed."""


def check_image(data: bytes, options: ImageOptions) -> Checked:
    """Decode an image as training would, and hash it.

    Args:
        data: The encoded image.
        options: How to check and store it.

    Raises:
        BadSample: If training could not use it.
    """
    if not data:
        raise BadSample("undecodable", "is empty")
    suffix = next((name for mark, name in _SUFFIXES.items() if data.startswith(mark)), None)
    if suffix is None:
        raise BadSample("undecodable", f"is {not_an_image(data[:_HEAD_BYTES])}")
    pixels: Pixels = (
        decode(memoryview(data), ImageSpec(options.max_pixels)).permute(1, 2, 0).numpy()
    )
    height, width = pixels.shape[:2]
    digest = xxhash.xxh3_128(f"{height} {width} ".encode())
    # Of a 16-bit image, only the upper bits are in `pixels`, and these may be empty: how many bits
    # are in use is a property of the set. So the image is compared as a file, never scaled.
    deep = is_deep(data[:_HEAD_BYTES])
    digest.update(data if deep else np.ascontiguousarray(pixels).data)
    perceptual = _perceptual_hash(pixels) if options.near and not deep else 0
    longest = None if deep else options.longest_side
    resized = longest is not None and max(height, width) > longest
    if longest is not None and resized:
        data, suffix = _scaled_down(pixels, longest, options.quality), "jpg"
    return Checked(
        data=data,
        suffix=suffix,
        resized=resized,
        width=width,
        height=height,
        digest=digest.intdigest(),
        perceptual=perceptual,
    )


def _perceptual_hash(pixels: Pixels) -> int:
    import imagehash  # takes a second, because of scipy

    # pHash keeps only low frequencies. Dropping pixels first costs a fraction of handing all of
    # them to Pillow, and averaging whole blocks a fraction of a resize.
    step = max(1, min(pixels.shape[:2]) // (2 * _HASHED_SIDE))
    image = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step]))
    image = image.reduce(max(1, min(image.size) // _HASHED_SIDE))
    bits = imagehash.phash(image).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _scaled_down(pixels: Pixels, longest_side: int, quality: int) -> bytes:
    image = Image.fromarray(pixels)
    scale = longest_side / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    smaller = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    smaller.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
