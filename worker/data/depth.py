"""PNGs of 16 bits, which often hold fewer: those of X-ray devices and microscopes 12."""

import numpy as np
import numpy.typing as npt
import torch
from torchvision.io import ImageReadMode, decode_png

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTH_AT, _CHUNKS_AT = 24, 8
_DEEP = 16


def is_deep(data: bytes | bytearray | memoryview) -> bool:
    """Whether the image is a PNG of 16 bits per sample."""
    head = bytes(data[: _DEPTH_AT + 1])
    return len(head) > _DEPTH_AT and head.startswith(_SIGNATURE) and head[_DEPTH_AT] == _DEEP


def deep_pixels(data: memoryview, depth: int) -> npt.NDArray[np.uint8]:
    """Return a PNG of 16 bits as RGB, [H, W, 3], the upper 8 of the bits in use.

    These are the bits that its sBIT chunk declares (PNG, 11.3.2.7), else `depth`. A file whose
    samples need more than it declares has them scaled up to 16 bits, as the standard wants it.
    """
    samples = _samples(data)
    declared = _declared_depth(data)
    bits = declared or depth
    if declared and samples.max(initial=0) >> declared:
        bits = _DEEP
    upper = np.minimum(samples >> (bits - 8), 255).astype(np.uint8)
    return np.repeat(upper.transpose(1, 2, 0), 3 // len(upper), axis=2)


def highest_sample(data: bytes) -> int:
    """Return the highest value in a PNG of 16 bits that does not declare its depth, else 0."""
    if not is_deep(data) or _declared_depth(memoryview(data)):
        return 0
    return int(_samples(memoryview(data)).max(initial=0))


def _samples(data: memoryview) -> npt.NDArray[np.uint16]:
    """Return the colors, [1 or 3, H, W], without alpha."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    samples: npt.NDArray[np.uint16] = decode_png(encoded, ImageReadMode.UNCHANGED).numpy()
    return samples[:3] if len(samples) >= 3 else samples[:1]


def _declared_depth(data: memoryview) -> int:
    """Return the significant bits that the file declares, 0 if it declares none to be believed."""
    at = _CHUNKS_AT
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), bytes(data[at + 4 : at + 8])
        if kind == b"sBIT" and 1 <= length <= 4:
            colors = bytes(data[at + 8 : at + 8 + (3 if length >= 3 else 1)])
            return max(colors) if 8 <= max(colors) <= _DEEP else 0
        if kind in (b"IDAT", b"PLTE", b"IEND"):
            return 0
        at += 12 + length
    return 0
