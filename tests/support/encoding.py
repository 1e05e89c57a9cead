"""Encoded pictures."""

import io

import numpy as np
import torch
from PIL import Image

from worker.data.decode_image import ImageSpec, decode

LIMIT = ImageSpec(100_000_000)


def gradient(height: int = 40, width: int = 60) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(picture: Image.Image, kind: str, **options: object) -> memoryview:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return memoryview(buffer.getvalue())


def pixels(data: memoryview) -> np.ndarray:
    image = decode(data, LIMIT)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy().astype(int)
