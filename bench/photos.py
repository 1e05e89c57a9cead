"""The same pictures in every contender's format, made once and kept."""

import argparse
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

PER_SHARD = 500


def photos(count: int) -> Iterator[bytes]:
    """JPEGs (quality 90, 4:2:0, about 500 x 400, noisy enough for 80 KB) of two photographs."""
    random = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        source = sources[number % len(sources)]
        width, height = int(random.integers(440, 561)), int(random.integers(340, 421))
        left = int(random.integers(0, source.width - 400))
        top = int(random.integers(0, source.height - 300))
        crop = source.crop((left, top, left + 400, top + 300)).resize((width, height))
        noise = random.normal(0, 7, (height, width, 1))
        pixels = np.clip(np.asarray(crop) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90, subsampling=2)
        yield buffer.getvalue()


def write_tars(folder: Path, images: list[bytes]) -> None:
    """WebDataset shards of `PER_SHARD` samples, with 100 classes."""
    folder.mkdir(parents=True)
    for first in range(0, len(images), PER_SHARD):
        with tarfile.open(folder / f"shard-{first // PER_SHARD:04d}.tar", "w") as tar:
            for number, image in enumerate(images[first : first + PER_SHARD], first):
                for suffix, data in (("cls", str(number % 100).encode()), ("jpg", image)):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def write_mds(folder: Path, images: list[bytes]) -> None:
    """mosaicml-streaming's format."""
    from streaming import MDSWriter

    columns = {"jpg": "bytes", "cls": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 26) as writer:
        for number, image in enumerate(images):
            writer.write({"jpg": image, "cls": number % 100})


def write_litdata(folder: Path, images: list[bytes]) -> None:
    """litdata's format."""
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes="64MB")
    for number, image in enumerate(images):
        cache[number] = {"jpg": image, "cls": number % 100}
    cache.done()
    cache.merge()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=4000)
    arguments = parser.parse_args()
    images = list(photos(arguments.count))
    write_tars(arguments.folder / "tars", images)
    write_mds(arguments.folder / "mds", images)
    write_litdata(arguments.folder / "lit", images)
    print(f"{len(images)} images, {sum(map(len, images)) / len(images) / 1024:.0f} KiB each")


if __name__ == "__main__":
    main()
