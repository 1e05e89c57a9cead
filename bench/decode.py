"""Decode and crop on one core: speed and fidelity against Pillow, same crops, same bytes."""

import io
import time
from collections.abc import Callable

import numpy as np
import simplejpeg
import torch
from PIL import Image

from bench.contenders import preprocessing
from bench.photos import photos
from worker.data.augment import random_resized_crop
from worker.data.decode_image import ImageSpec, decode
from worker.data.epoch_plan import keyed_uniform

COUNT, SIDE = 250, 224


def main() -> None:
    torch.set_num_threads(1)
    images = list(photos(COUNT))
    boxes = []
    for image, draws in zip(
        images, keyed_uniform(40, 0, 0, np.arange(COUNT)).tolist(), strict=True
    ):
        width, height = Image.open(io.BytesIO(image)).size
        boxes.append(random_resized_crop(width, height, (0.08, 1.0), iter(draws)))

    def ours(number: int) -> np.ndarray:
        image = decode(memoryview(images[number]), ImageSpec(10**8))
        return preprocessing().resized(image, boxes[number], SIDE).permute(1, 2, 0).numpy()

    def pillow(number: int) -> np.ndarray:
        top, left, height, width = boxes[number]
        image = Image.open(io.BytesIO(images[number])).convert("RGB")
        crop = image.crop((left, top, left + width, top + height))
        return np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    def bare(number: int) -> np.ndarray:
        image = torch.from_numpy(simplejpeg.decode_jpeg(images[number], buffer=buffer))
        resized = preprocessing().resized(image.permute(2, 0, 1), boxes[number], SIDE)
        return resized.permute(1, 2, 0).numpy()

    buffer = bytearray(3 * 600 * 600)
    contenders: dict[str, Callable[[int], np.ndarray]] = {
        "worker": ours,
        "pillow": pillow,
        "bare": bare,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(5):
        for name, work in contenders.items():
            began = time.process_time()
            for number in range(COUNT):
                work(number)
            times[name].append((time.process_time() - began) / COUNT * 1e3)
    errors = [np.abs(ours(n).astype(int) - pillow(n).astype(int)).mean() for n in range(COUNT)]
    best = {name: sorted(found)[2] for name, found in times.items()}
    print(
        f"worker {best['worker']:.2f} ms, Pillow {best['pillow']:.2f} ms an image: "
        f"{best['pillow'] / best['worker']:.2f}x"
    )
    print(
        f"simplejpeg and the same crop without any check {best['bare']:.2f} ms: "
        f"worker takes {best['worker'] / best['bare']:.2f}x of it (bar 1.10x)"
    )
    print(f"mean error {np.mean(errors):.3f} of 255, worst image {max(errors):.3f} (bar 0.25)")


if __name__ == "__main__":
    main()
