"""A check of one image: decoded as in training, hashed, and scaled down if asked for."""

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from worker.data.decode_image import ImageSpec, decode
from worker.data.image_formats import SIGNATURES
from worker.data.reader import BadSample

Pixels = npt.NDArray[np.uint8]

_SUFFIXES = dict(zip(SIGNATURES, ("jpg", "png", "webp"), strict=True))
_HASHED_SIDE = 64
"""Images are reduced to about this side before they are hashed: pHash itself uses 32 x 32."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Settings for checking and storing images."""

    max_pixels: int
    """Larger images are bad."""
    longest_side: int | None = None
    """Images with a longer side are scaled down to it, in pixels; None to keep all as they are."""
    quality: int = 90
    """JPEG quality of the images that are scaled down."""
    near: bool = True
    """Whether to compute perceptual hashes."""


class Checked(NamedTuple):
    """An image as it will be stored."""

    data: bytes
    """The encoded image."""
    suffix: str
    """Suffix of its member in the tar, by its first bytes."""
    resized: bool
    """Whether it was encoded anew."""
    width: int
    """Its width as it was, in pixels."""
    height: int
    """Its height as it was, in pixels."""
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
    suffix = next((name for mark, name in _SUFFIXES.items() if data.startswith(mark)), None)
    if suffix is None:
        raise BadSample("undecodable", "is not a JPEG, PNG or WebP image")
    pixels: Pixels = (
        decode(memoryview(data), ImageSpec(options.max_pixels)).permute(1, 2, 0).numpy()
    )
    height, width = pixels.shape[:2]
    digest = xxhash.xxh3_128(f"{height} {width} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    perceptual = _perceptual_hash(pixels) if options.near else 0
    longest = options.longest_side
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
    import imagehash  # takes a second, for scipy

    image = Image.fromarray(pixels)
    # The first reduction averages whole blocks, which costs a fraction of a resize.
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
