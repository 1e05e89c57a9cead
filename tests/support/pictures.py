"""Small pictures that a network can tell apart, made on the spot."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, per_class: int, seed: int = 0, suffix: str = "jpg") -> None:
    """Noisy blue and red squares of 40 to 72 pixels, in a folder per class."""
    random = np.random.default_rng(seed)
    for channel, name in ((2, "blue"), (0, "red")):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            height, width = random.integers(40, 73, size=2)
            pixels = random.integers(0, 160, size=(height, width, 3), dtype=np.uint8)
            pixels[..., channel] += 90
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.{suffix}")
