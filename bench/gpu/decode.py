"""Decoding alone, and beside the steps of a model."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from bench.decoding import Decoding
from bench.gpu.section import Result, Setting
from bench.gpu.tools import ahead, alone, engine_of, noise, plans_of, seconds_per
from worker.manifest import Augment
from worker.model.backbone import preprocessing_of


def beside_decoding(setting: Setting) -> Result:
    """Steps on one batch while processes decode others, and how many images those decode."""
    found: Result = {}
    cores = len(os.sched_getaffinity(0))
    counts = (2,) if setting.dry else (cores // 2, cores, 2 * cores)
    plans = [*plans_of(setting), ("resnet50", 4, 32) if setting.dry else ("resnet50", 64, 224)]
    preprocessing = preprocessing_of("resnet50").at(plans[0][2])
    uri = str(setting.folder / "tars")
    sources = {count: Decoding(uri, count, 64, preprocessing) for count in counts}
    with alone(setting):
        for name, images, side in plans:
            rows = found[f"{name}, {images} images"] = {}
            batch = noise(setting, images, side)
            step = ahead(engine_of(setting, name, side), batch, images)
            rows["alone"] = round(images / seconds_per(setting, step))
            for count, source in sources.items():
                with _drained(source) as decoded:
                    first, began = decoded[0], time.perf_counter()
                    pace = round(images / seconds_per(setting, step))
                    rate = (decoded[0] - first) / (time.perf_counter() - began)
                rows[f"{count} decode threads"] = {"steps": pace, "decoded": round(rate)}
    return found


def decoding(setting: Setting) -> Result:
    """Images a second by decode threads, and with RandAugment."""
    found: Result = {}
    cores = len(os.sched_getaffinity(0))
    side, seconds = (32, 0.5) if setting.dry else (224, 3.0)
    heavy = Augment.model_validate({"randaugment": {"operations": 2, "magnitude": 9}})
    for count, augment in [*((n, None) for n in sorted({1, cores // 2, cores})), (cores, heavy)]:
        source = Decoding(
            str(setting.folder / "tars"),
            count,
            64,
            preprocessing_of("resnet50").at(side),
            augment=augment,
        )
        with _drained(source) as decoded:
            time.sleep(seconds / 3)
            first = decoded[0]
            time.sleep(seconds)
            rate = round((decoded[0] - first) / seconds)
        name = f"{count} threads in {source.processes} processes"
        found[f"{name}, RandAugment" if augment else name] = rate
        source.close()
    return found


@contextlib.contextmanager
def _drained(source: Decoding) -> Iterator[list[int]]:
    """Takes batches as fast as they come, in a thread; the list holds the images so far."""
    decoded, stop = [0], threading.Event()

    def drain() -> None:
        with contextlib.closing(source.batches()) as batches:  # type: ignore[type-var]
            for batch in batches:
                decoded[0] += len(batch.labels)
                if stop.is_set():
                    return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    while not decoded[0]:
        time.sleep(0.01)
    yield decoded
    stop.set()
    thread.join()
