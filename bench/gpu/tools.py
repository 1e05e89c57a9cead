"""Models, batches and timing that the sections share."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bench.gpu.section import Setting
from bench.learners import ALONE, manifest_of
from worker.data.loader import Batch
from worker.learn.loss import Criterion
from worker.learn.training_step import Engine
from worker.model.backbone import build_backbone, preprocessing_of
from worker.model.learner import build_learner
from worker.model.rate_groups import assign

CLASSES = 1000


def noise(setting: Setting, images: int, side: int) -> Batch:
    """A batch as the loader gives it: uint8, channels last, page-locked, on the CPU."""
    batch = Batch.of_size(np.arange(images), side, pin_memory=not setting.dry)
    batch.images.copy_(torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8))
    batch.labels.copy_(torch.arange(images) % CLASSES)
    return batch


def plans_of(setting: Setting) -> list[tuple[str, int, int]]:
    """Models with the images of a batch and their side in pixels."""
    if setting.dry:
        return [("resnet18", 4, 32)]
    return [("resnet50", 256, 224), ("vit_b_16", 256, 224)]


def device_of(setting: Setting) -> torch.device:
    """The GPU, or the CPU in a dry run."""
    return torch.device("cpu") if setting.dry else torch.device("cuda", 0)


def bf16(setting: Setting) -> torch.autocast:
    """The context of a bare loop's forward pass."""
    return torch.autocast(device_of(setting).type, torch.bfloat16, enabled=not setting.dry)


def wait_for(setting: Setting) -> None:
    """Wait until the device has done what is queued on it."""
    if not setting.dry:
        torch.cuda.synchronize()


def seconds_per(setting: Setting, call: Callable[[], object], repeats: int = 15) -> float:
    """Median seconds of a call, over groups of calls that are waited for together."""
    repeats = 3 if setting.dry else repeats
    for _ in range(3):
        call()
    wait_for(setting)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(max(1, repeats // 3)):
            call()
        wait_for(setting)
        times.append((time.perf_counter() - began) / max(1, repeats // 3))
    return statistics.median(times)


@contextlib.contextmanager
def alone(setting: Setting) -> Iterator[None]:
    """A process group of one rank, as the product has one."""
    backend = "gloo" if setting.dry else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


def engine_of(setting: Setting, name: str, side: int, **plan: Any) -> Engine:
    """An engine of the product for a torchvision model."""
    groups = plan.pop("groups", [{"match": "*"}])
    precision = "fp32" if setting.dry else "bf16"
    train = {"precision": precision, **plan.pop("train", {})}
    manifest = manifest_of(groups, train, name="adamw", **plan)
    backbone = build_backbone(name, CLASSES, 0, side)
    groups = assign(backbone.layout, manifest.optimizer, 4)
    learner = build_learner(backbone.model, groups, manifest, device_of(setting))
    criterion = Criterion(auxiliary_weight=backbone.auxiliary_weight)
    preprocessing = preprocessing_of(name).at(side)
    clip_norm = manifest.optimizer.clip_norm
    return Engine(
        learner,
        preprocessing,
        criterion,
        train=manifest.train,
        clip_norm=clip_norm,
        rank=ALONE,
        full_batch=manifest.train.batch_size,
    )


def ahead(engine: Engine, batch: Batch, images: int) -> Callable[[], None]:
    """A step as training takes it: queued before the last one is looked at."""
    number = iter(range(10**9))

    def step() -> None:
        engine.launch(next(number), batch, images)
        engine.settle()
        engine.update()

    return step
