"""Steps, evaluation and checkpoints on batches that are there already, and decoding beside them."""

import collections
import contextlib
import os
import platform
import statistics
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torchvision import models

from bench.decoding import Decoding
from bench.gpu.section import Result, Setting
from tests.learners import ALONE, manifest_of
from worker.checkpoint.host import HostCopy
from worker.checkpoint.snapshot import take_snapshot
from worker.data.loader import Batch
from worker.manifest import Augment
from worker.model.backbone import build_backbone, preprocessing_of
from worker.model.groups import assign
from worker.model.learner import build_learner
from worker.train.criterion import Criterion
from worker.train.engine import Engine
from worker.train.evaluation import evaluate

_CLASSES = 1000


def machine(setting: Setting) -> Result:
    """What the sections below have to work with."""
    found: Result = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }
    if setting.dry:
        return found
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    found["gpu"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    found["bf16 TFLOP/s"] = round(2 * 8192**3 / _seconds(setting, lambda: square @ square) / 1e12)
    one, other = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    copied = 2 * (1 << 30) / _seconds(setting, lambda: other.copy_(one))
    found["device copy TB/s"] = round(copied / 1e12, 2)
    host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    up = _seconds(setting, lambda: one[: 1 << 28].copy_(host, non_blocking=True))
    found["host to device GB/s"] = round((1 << 28) / up / 1e9, 1)
    small = torch.zeros(1, device="cuda")
    found["launch, µs"] = round(_seconds(setting, lambda: small.add_(1), 3000) * 1e6, 1)
    return found


def steps(setting: Setting) -> Result:
    """Images a second of the engine, queued ahead as training does, next to a bare loop."""
    found: Result = {}
    plans: dict[str, dict[str, Any]] = {
        "engine": {},
        "with ema": {"train": {"ema": 0.99}},
        "with layer decay": {"groups": [{"match": "*", "layer_decay": 0.65}]},
        "compiled": {"train": {"compile": True}},
    }
    if setting.dry:
        del plans["compiled"]
    with _alone(setting):
        for name, images, side in _models(setting):
            rows = found[f"{name}, {images} images"] = {}
            rows["bare loop"] = round(images / _bare(setting, name, images, side, False))
            batch = noise(setting, images, side)
            for label, plan in plans.items():
                step = _ahead(_engine(setting, name, side, **plan), batch, images)
                rows[label] = round(images / _seconds(setting, step))
            if not setting.dry:
                rows["bare loop, compiled"] = round(
                    images / _bare(setting, name, images, side, True)
                )
    return found


def waits(setting: Setting) -> Result:
    """Lines that make the host wait for the device: in one step, and in four batches evaluated."""
    found: Result = {}
    images, side = 8, 32 if setting.dry else 64
    with _alone(setting):
        batch = noise(setting, images, side)
        for label, plan in (
            ("step", {}),
            ("step, everything on", {"train": {"ema": 0.9}, "clip_norm": 1.0}),
            ("step, fp16", {"train": {"precision": "fp16"}}),
        ):
            step = _ahead(_engine(setting, "resnet18", side, **plan), batch, images)
            for _ in range(3):
                step()
            found[label] = _lines(setting, step)
        engine = _engine(setting, "resnet18", side)
        found["evaluation of 4 batches"] = _lines(setting, _evaluating(engine, [batch] * 4))
    return found


def beside_decoding(setting: Setting) -> Result:
    """Steps on one batch while processes decode others, and how many images those decode."""
    found: Result = {}
    cores = len(os.sched_getaffinity(0))
    counts = (2,) if setting.dry else (cores // 2, cores, 2 * cores)
    plans = [*_models(setting), ("resnet50", 4, 32) if setting.dry else ("resnet50", 64, 224)]
    preprocessing = preprocessing_of("resnet50").at(plans[0][2])
    uri = str(setting.folder / "tars")
    sources = {count: Decoding(uri, count, 64, preprocessing) for count in counts}
    with _alone(setting):
        for name, images, side in plans:
            rows = found[f"{name}, {images} images"] = {}
            batch = noise(setting, images, side)
            step = _ahead(_engine(setting, name, side), batch, images)
            rows["alone"] = round(images / _seconds(setting, step))
            for count, source in sources.items():
                with _drained(source) as decoded:
                    first, began = decoded[0], time.perf_counter()
                    pace = round(images / _seconds(setting, step))
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
            str(setting.folder / "tars"), count, 64, preprocessing_of("resnet50").at(side), augment
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


def evaluation(setting: Setting) -> Result:
    """Images a second of an evaluation, next to bare forward passes."""
    found: Result = {}
    with _alone(setting):
        for name, images, side in _models(setting):
            engine = _engine(setting, name, side)
            batches = [noise(setting, images, side) for _ in range(2 if setting.dry else 8)]
            seconds = _seconds(setting, _evaluating(engine, batches), 3)
            model = engine.learner.model.eval()
            inputs = torch.randn(images, 3, side, side, device=engine.device)
            inputs = inputs.to(memory_format=torch.channels_last)

            def forward(model: Any = model, inputs: Any = inputs) -> None:
                with torch.inference_mode(), _bf16(setting):
                    model(inputs)

            found[name] = {
                "evaluation": round(images * len(batches) / seconds),
                "bare": round(images / _seconds(setting, forward)),
            }
    return found


def checkpoints(setting: Setting) -> Result:
    """How long copying the state to the host blocks training: the first time, and later."""
    found: Result = {}
    with _alone(setting):
        for name, images, side in _models(setting):
            images = min(images, 32)
            engine = _engine(setting, name, side)
            step = _ahead(engine, noise(setting, images, side), images)
            host, blocked = HostCopy(), []
            for turn in range(4):
                step()
                engine.settle()
                _wait(setting)
                began = time.perf_counter()
                parts = take_snapshot(engine.learner, host, {"step": turn})
                blocked.append(round((time.perf_counter() - began) * 1e3, 1))
            size = sum(part.size for part in parts.values())
            found[name] = {"MB": round(size / 1e6), "ms": blocked}
    return found


def noise(setting: Setting, images: int, side: int) -> Batch:
    """A batch as the loader gives it: uint8, channels last, page-locked, on the CPU."""
    batch = Batch.of_size(np.arange(images), side, not setting.dry)
    batch.images.copy_(torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8))
    batch.labels.copy_(torch.arange(images) % _CLASSES)
    return batch


def _models(setting: Setting) -> list[tuple[str, int, int]]:
    if setting.dry:
        return [("resnet18", 4, 32)]
    return [("resnet50", 256, 224), ("vit_b_16", 256, 224)]


def _device(setting: Setting) -> torch.device:
    return torch.device("cpu") if setting.dry else torch.device("cuda", 0)


def _bf16(setting: Setting) -> torch.autocast:
    return torch.autocast(_device(setting).type, torch.bfloat16, enabled=not setting.dry)


def _wait(setting: Setting) -> None:
    if not setting.dry:
        torch.cuda.synchronize()


def _seconds(setting: Setting, call: Callable[[], object], repeats: int = 15) -> float:
    """Median seconds of a call, over groups of calls that are waited for together."""
    repeats = 3 if setting.dry else repeats
    for _ in range(3):
        call()
    _wait(setting)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(max(1, repeats // 3)):
            call()
        _wait(setting)
        times.append((time.perf_counter() - began) / max(1, repeats // 3))
    return statistics.median(times)


@contextlib.contextmanager
def _alone(setting: Setting) -> Iterator[None]:
    """A process group of one rank, as the product has one."""
    backend = "gloo" if setting.dry else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


def _engine(setting: Setting, name: str, side: int, **plan: Any) -> Engine:
    groups = plan.pop("groups", [{"match": "*"}])
    precision = "fp32" if setting.dry else "bf16"
    train = {"precision": precision, **plan.pop("train", {})}
    manifest = manifest_of(groups, train, name="adamw", **plan)
    backbone = build_backbone(name, _CLASSES, 0, side)
    groups = assign(backbone.layout, manifest.optimizer, 4)
    learner = build_learner(backbone.model, groups, manifest, _device(setting))
    criterion = Criterion(auxiliary_weight=backbone.auxiliary_weight)
    preprocessing = preprocessing_of(name).at(side)
    clip_norm = manifest.optimizer.clip_norm
    return Engine(learner, preprocessing, criterion, manifest.train, clip_norm, ALONE)


def _ahead(engine: Engine, batch: Batch, images: int) -> Callable[[], None]:
    """A step as training takes it: queued before the last one is looked at."""
    number = iter(range(10**9))

    def step() -> None:
        engine.launch(next(number), batch, images)
        engine.settle()
        engine.update()

    return step


def _bare(setting: Setting, name: str, images: int, side: int, compiled: bool) -> float:
    """Seconds of a step on data that stays on the device, without anything around it."""
    device = _device(setting)
    model = models.get_model(name, weights=None).to(device).to(memory_format=torch.channels_last)
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    inputs = torch.randn(images, 3, side, side, device=device)
    inputs = inputs.to(memory_format=torch.channels_last)
    labels = torch.randint(0, _CLASSES, (images,), device=device)

    def step() -> None:
        with _bf16(setting):
            outputs = model(inputs)
        F.cross_entropy(outputs.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _seconds(setting, step)


def _evaluating(engine: Engine, batches: list[Batch]) -> Callable[[], object]:
    preprocessing = engine._preprocessing
    return lambda: evaluate(engine.learner, batches, preprocessing, _CLASSES, lambda: False)


def _lines(setting: Setting, call: Callable[[], object]) -> Result:
    """Lines of code at which the host waits for the device, and how often."""
    if setting.dry:
        call()
        return {}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        call()
        torch.cuda.set_sync_debug_mode("default")
    return collections.Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in seen
        if "called a synchronizing" in str(warning.message)
    )


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
