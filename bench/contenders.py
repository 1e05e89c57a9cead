"""A contender in a process of its own: reads, decodes, crops to 224 pixels, reports.

`python -m bench.contenders NAME WORKERS` prints one line of JSON. Stock contenders do what their
tutorials do: PIL, float, normalized. `tuned` ones get our decoder and hand out uint8, as we do.
"""

import functools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.photos import PER_SHARD

BATCH, WARM_UP, MEASURED = 64, 6, 48
ENDPOINT = os.environ.get("BENCH_ENDPOINT", "")
BEGAN = float(os.environ.get("BENCH_BEGAN", time.time()))


_imported = BEGAN


def ready() -> None:
    """Note that everything is imported."""
    global _imported
    _imported = time.time()


def urls() -> list[str]:
    return [f"{ENDPOINT}/bucket/tars/shard-{n:04d}.tar" for n in range(shards())]


def shards() -> int:
    return int(os.environ["BENCH_SHARDS"])


def stock_transform() -> Callable[[Any], Any]:
    from torchvision import transforms as T

    return T.Compose(
        [
            T.RandomResizedCrop(224),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


@functools.cache
def preprocessing() -> Any:
    from torchvision.transforms import InterpolationMode

    from worker.data.preprocessing import Preprocessing

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Preprocessing(
        crop_size=224, resize_size=256, mean=mean, std=std, interpolation=InterpolationMode.BILINEAR
    )


def fast_image(data: bytes) -> Any:
    """Our decoder, crop law and resize, on Python's own random numbers."""
    from worker.data.augment import random_resized_crop
    from worker.data.decode_image import ImageSpec, decode

    image = decode(memoryview(data), ImageSpec(10**8))
    numbers = iter([random.random() for _ in range(41)])
    top, left, h, w = random_resized_crop(image.shape[2], image.shape[1], (0.08, 1.0), numbers)
    out = preprocessing().resized(image, (top, left, h, w), 224)
    return out.flip(-1) if next(numbers) < 0.5 else out


def webdataset(workers: int, *, tuned: bool) -> Iterable[Any]:
    import webdataset as wds

    transform = fast_image if tuned else stock_transform()
    preprocessing()
    ready()
    sources = [f"pipe:curl -s {url}" for url in urls()]
    data = wds.WebDataset(sources, shardshuffle=100, empty_check=False).shuffle(500)
    if tuned:
        data = data.to_tuple("jpg", "cls").map_tuple(transform, int)
    else:
        data = data.decode("pil").to_tuple("jpg", "cls").map_tuple(transform, int)
    loader = wds.WebLoader(data.repeat(100).batched(BATCH), batch_size=None, num_workers=workers)
    return iter(loader)


def pil(data: bytes) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def torch_loader(data: Any, workers: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    while True:
        yield from DataLoader(data, batch_size=BATCH, num_workers=workers, drop_last=True)


def mosaic(workers: int) -> Iterable[Any]:
    import streaming

    os.environ["S3_ENDPOINT_URL"] = ENDPOINT
    transform = stock_transform()
    ready()

    class Data(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> Any:
            sample = super().__getitem__(at)
            return transform(pil(sample["jpg"])), sample["cls"]

    local = tempfile.mkdtemp(dir=os.environ["BENCH_FOLDER"])
    data = Data(remote="s3://bucket/mds", local=local, shuffle=True, batch_size=BATCH)
    return torch_loader(data, workers)


def litdata(workers: int) -> Iterable[Any]:
    import litdata as ld
    from litdata.streaming import downloader

    if hasattr(downloader, "_OBSTORE_CLIENT_OPTIONS"):
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    transform = stock_transform()
    ready()

    class Data(ld.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return transform(pil(sample["jpg"])), sample["cls"]

    data = Data(
        "s3://bucket/lit",
        cache_dir=tempfile.mkdtemp(dir=os.environ["BENCH_FOLDER"]),
        shuffle=True,
        storage_options={"endpoint_url": ENDPOINT},
    )
    while True:
        yield from ld.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)


def s3torchconnector(workers: int) -> Iterable[Any]:
    import tarfile

    import torch
    from s3torchconnector import S3ClientConfig, S3IterableDataset

    transform = stock_transform()
    ready()
    names = [url.replace(f"{ENDPOINT}/", "s3://") for url in urls()]

    class Data(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            info = torch.utils.data.get_worker_info()
            mine = names[info.id :: info.num_workers] if info else names
            objects = S3IterableDataset.from_objects(
                mine,
                region="us-east-1",
                endpoint=ENDPOINT,
                s3client_config=S3ClientConfig(force_path_style=True),
            )
            pool: list[tuple[bytes, int]] = []
            for shard in objects:
                label = 0
                with tarfile.open(fileobj=shard, mode="r|") as tar:
                    for member in tar:
                        body = tar.extractfile(member).read()  # type: ignore[union-attr]
                        if member.name.endswith(".cls"):
                            label = int(body)
                            continue
                        pool.append((body, label))
                        if len(pool) > 500:
                            image, found = pool.pop(random.randrange(500))
                            yield transform(pil(image)), found
            for image, found in pool:
                yield transform(pil(image)), found

    return torch_loader(Data(), workers)


def ours(workers: int, position: float = 0.0, scratch: Path | None = None) -> Iterable[Any]:
    os.environ["AWS_ENDPOINT_URL"] = ENDPOINT
    import torch

    from bench.decoding import Decoding
    from worker.memory import configure_memory

    ready()

    configure_memory(keep_freed=True)  # as `worker train` does
    torch.set_num_threads(1)
    decoding = Decoding("s3://bucket/tars/", workers, BATCH, preprocessing(), scratch=scratch)
    with closing(decoding):
        yield from decoding.batches(position)


def second_epoch(workers: int) -> Iterable[Any]:
    """Read from scratch, in which the first epoch has left decoded images."""
    with tempfile.TemporaryDirectory(dir=os.environ["BENCH_FOLDER"]) as folder:
        batches = ours(workers, scratch=Path(folder))
        for _ in range(shards() * PER_SHARD // BATCH):
            next(batches)  # type: ignore[call-overload]
        yield from batches


def bare() -> dict[str, float]:
    """Decode and crop alone, one thread, bytes in memory."""
    import tarfile

    images = []
    with tarfile.open(Path(os.environ["BENCH_FOLDER"]) / "bucket/tars/shard-0000.tar") as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                images.append(tar.extractfile(member).read())  # type: ignore[union-attr]
    for image in images[:50]:
        fast_image(image)
    began = time.process_time()
    for image in images:
        fast_image(image)
    return {"cpu_ms": (time.process_time() - began) / len(images) * 1e3}


def cpu_seconds() -> float:
    """CPU time of this process and all of its descendants."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    mine, total = {os.getpid()}, 0.0
    for pid in sorted(parents):
        at = pid
        while at in parents and at not in mine:
            at = parents[at]
        if at in mine:
            total += used[pid]
    return total


def measure(batches: Iterable[Any]) -> dict[str, float]:
    iterator = iter(batches)
    next(iterator)
    first = time.time()
    for _ in range(WARM_UP - 1):
        next(iterator)
    began, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(MEASURED):
        next(iterator)
    images = BATCH * MEASURED
    seconds = time.perf_counter() - began
    return {
        "images_per_second": images / seconds,
        "cpu_ms": (cpu_seconds() - cpu) / images * 1e3,
        "first_batch": first - BEGAN,
        "after_import": first - _imported,
    }


CONTENDERS: dict[str, Callable[[int], Iterable[Any]]] = {
    "worker": ours,
    "worker, epoch 2, scratch": second_epoch,
    "webdataset": lambda workers: webdataset(workers, tuned=False),
    "webdataset-tuned": lambda workers: webdataset(workers, tuned=True),
    "mosaicml-streaming": mosaic,
    "litdata": litdata,
    "s3torchconnector": s3torchconnector,
}


def seeks() -> dict[str, float]:
    """Seconds to the first batch at several places of an epoch, each with a reader of its own."""
    found: dict[str, list[float]] = {}
    for _ in range(9):
        for share in random.sample((0.0, 0.5, 0.9), 3):
            began = time.perf_counter()
            batches = ours(2, share)
            next(iter(batches))
            found.setdefault(f"{share:.0%}", []).append(time.perf_counter() - began)
            batches.close()  # type: ignore[attr-defined]
            time.sleep(0.3)  # reads that are on their way end
    return {share: sorted(times)[4] for share, times in sorted(found.items())}


if __name__ == "__main__":
    name, workers = sys.argv[1], int(sys.argv[2])
    if name == "bare":
        result = bare()
    elif name == "seek":
        result = seeks()
    else:
        result = measure(CONTENDERS[name](workers))
    print(json.dumps(result), flush=True)
    os._exit(0)  # endless loaders end badly
