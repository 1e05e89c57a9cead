"""The interpreter lock of the process that trains, beside decoders: threads in it, and processes.

python -m bench.gil [--seconds 3]

Printed are how many times a second that process gets through the forward pass of ResNet-50 on the
meta device, which is all Python and launching, as where a GPU does the rest; and the images that
are decoded meanwhile. Decoding itself is a sleep of as long as it takes, which holds no lock and no
core, so that few cores can stand for many; the rest of each image is the product's.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision import models

from bench.decoding import Decoding
from bench.photos import photos, write_tars
from worker.data import loader as loader_module
from worker.data.augment import Augmentation
from worker.data.decode_image import ImageSpec
from worker.data.epoch_plan import EpochPlan
from worker.data.index import parse_address, read_index
from worker.data.index_tars import index_tars
from worker.data.loader import Batch, Loader
from worker.data.read_cache import Cache
from worker.data.reader import SampleReader
from worker.data.tar_source import find_tars
from worker.manifest import Augment
from worker.model.backbone import preprocessing_of

_DECODE_SECONDS = 2.2e-3  # 116 kB JPEGs on the H100 machine: 2.5 ms of CPU per image in all
_BATCH, _SIDE = 64, 224
_PREPROCESSING = preprocessing_of("resnet50").at(_SIDE)


class _Threads:
    """Batches decoded by threads of this process, as they were until decoders became processes."""

    def __init__(self, uri: str, threads: int) -> None:
        address = parse_address(uri)
        self._index = read_index(address)
        reader = SampleReader(
            address.store, self._index, cache=Cache(512 << 20), scratch=None, lanes=32
        )
        self._loader = Loader(reader, threads, ImageSpec(10**8))

    def batches(self) -> Iterator[Batch]:
        augmentation = Augmentation(_PREPROCESSING, Augment(), 0)
        for epoch in range(10**6):
            plan = EpochPlan(self._index.counts, _BATCH, 0, epoch=epoch)
            ids = (plan.batch(step) for step in range(plan.steps))
            yield from self._loader.batches(ids, augmentation.prepare_for(epoch), size=_SIDE)

    def close(self) -> None:
        self._loader.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--decoders", type=int, nargs="*", default=[1, 4, 8, 16, 32])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_tars(Path(folder, "tars"), list(photos(500)))
        index_tars(
            find_tars(f"{folder}/tars"),
            None,
            "label",
            error_budget=0.0,
            threads=2,
            max_pixels=None,
            advance=lambda done: None,
        )
        _simulate_decoding()
        alone = _measure(None, options.seconds)[0]
        print(f"{'decoders':<22} launch pace   decoded/s   lock per image")
        print(f"{'none':<22} {1:11.2f}")
        for count in options.decoders:
            for kind in ("threads", "processes"):
                pace, rate, lock = _beside(kind, f"{folder}/tars", count, options.seconds)
                name = f"{count} {kind}" if kind == "threads" else f"{count} in processes"
                print(f"{name:<22} {pace / alone:11.2f} {rate:11.0f} {lock:13.3f} ms", flush=True)


def _beside(kind: str, uri: str, count: int, seconds: float) -> tuple[float, float, float]:
    """Run in a fork, as decode processes need a parent that has started no thread."""
    read, write = os.pipe()
    if os.fork() == 0:
        source = (
            _Threads(uri, count)
            if kind == "threads"
            else Decoding(uri, count, _BATCH, _PREPROCESSING)
        )
        found = _measure(source, seconds)
        os.write(write, " ".join(map(str, found)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        pace, rate, lock = map(float, pipe.read().split())
    os.wait()
    return pace, rate, lock


def _measure(source: "_Threads | Decoding | None", seconds: float) -> tuple[float, float, float]:
    """Forward passes and images a second, and milliseconds of this process's CPU per image."""
    torch.set_num_threads(1)
    model = models.resnet50().to("meta")
    images = torch.empty(_BATCH, 3, _SIDE, _SIDE, device="meta")
    decoded, stop = [0], threading.Event()

    def drain() -> None:
        if source:
            for batch in source.batches():
                decoded[0] += len(batch.labels)
                if stop.is_set():
                    return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    model(images)
    time.sleep(1.0 if source else 0.0)
    first, passes = decoded[0], 0
    began, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
    while time.perf_counter() - began < seconds:
        model(images)
        passes += 1
    wall = time.perf_counter() - began
    count = decoded[0] - first
    others = (time.process_time() - cpu) - (time.thread_time() - own)
    stop.set()
    return passes / wall, count / wall, others / max(1, count) * 1e3


def _simulate_decoding() -> None:
    """Have decoding take its time without a core, and give the same pixels every time."""
    pixels = torch.zeros(400, 500, 3, dtype=torch.uint8).permute(2, 0, 1)

    def decode(data: memoryview, spec: ImageSpec) -> torch.Tensor:
        time.sleep(_DECODE_SECONDS)
        return pixels

    def resized(self: object, image: torch.Tensor, box: object, *size: int) -> torch.Tensor:
        return image[:, :_SIDE, :_SIDE]

    loader_module.decode = decode  # type: ignore[attr-defined]
    type(_PREPROCESSING).resized = resized  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
