"""Packing an image folder: `worker pack` next to what people run instead, in turns.

    python -m bench.pack [--images 4000] [--rounds 3]

Contenders: a `webdataset.ShardWriter` loop over ImageFolder's decoded pictures, as in its
documentation; the same loop over the files' bytes, which decodes and checks nothing; and
`datasets.load_dataset("imagefolder")` to Parquet, which does not either. `worker pack` decodes
every picture, hashes it twice, writes, reads back and indexes. Each is a process of its own.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.photos import photos

_CLASSES = 10

_DECODED = """
import sys, webdataset as wds
from torchvision.datasets import ImageFolder
source, dest = sys.argv[1:]
with wds.ShardWriter(f"{dest}/x-%06d.tar", maxsize=64 << 20, verbose=0) as sink:
    for n, (image, label) in enumerate(ImageFolder(source)):
        sink.write({"__key__": f"{n:08d}", "jpg": image, "cls": label})
"""
_BYTES = """
import sys, webdataset as wds
from pathlib import Path
source, dest = sys.argv[1:]
with wds.ShardWriter(f"{dest}/x-%06d.tar", maxsize=64 << 20, verbose=0) as sink:
    for n, path in enumerate(sorted(Path(source).rglob("*.jpg"))):
        sink.write({"__key__": f"{n:08d}", "jpg": path.read_bytes(), "cls": path.parent.name})
"""
_DATASETS = """
import sys
from datasets import load_dataset
source, dest = sys.argv[1:]
folder = load_dataset("imagefolder", data_dir=source, cache_dir=f"{dest}/cache")
folder["train"].to_parquet(f"{dest}/x.parquet")
"""
CONTENDERS: dict[str, list[str]] = {
    "worker pack": ["-m", "worker", "pack"],
    "ShardWriter, decoded": ["-c", _DECODED],
    "ShardWriter, bytes": ["-c", _BYTES],
    "datasets, Parquet": ["-c", _DATASETS],
}


def run(arguments: list[str], source: Path, dest: Path) -> tuple[float, float]:
    """Run a contender; return its seconds and CPU seconds, those of its children included."""
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir()
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [sys.executable, *arguments, str(source), str(dest)],
        check=True,
        capture_output=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "photos")
        for number, data in enumerate(photos(options.images)):
            path = source / f"class-{number % _CLASSES}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(options.rounds):
            for name, arguments in CONTENDERS.items():
                taken[name].append(run(arguments, source, Path(folder, "dest")))
    ours = statistics.median(seconds for seconds, _ in taken["worker pack"])
    for name, runs in taken.items():
        seconds = statistics.median(part for part, _ in runs)
        cpu = statistics.median(part for _, part in runs)
        print(
            f"{name:<21} {options.images / seconds:6.0f} images/s  "
            f"{1000 * cpu / options.images:5.2f} ms CPU per image  "
            f"worker pack is {seconds / ours:.2f}x as fast"
        )


if __name__ == "__main__":
    main()
