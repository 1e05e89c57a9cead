"""Steps and evaluation on batches that are there already."""

import collections
import os
import platform
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torchvision import models

from bench.gpu.section import Result, Setting
from bench.gpu.tools import (
    CLASSES,
    ahead,
    alone,
    bf16,
    device_of,
    engine_of,
    noise,
    plans_of,
    seconds_per,
)
from worker.data.loader import Batch
from worker.learn.evaluation import evaluate
from worker.learn.training_step import Engine
from worker.ranks.agreement import Agreement, Signals
from worker.ranks.process_group import total


def machine(setting: Setting) -> Result:
    """Measure the hardware that the sections below have to work with."""
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
    found["bf16 TFLOP/s"] = round(
        2 * 8192**3 / seconds_per(setting, lambda: square @ square) / 1e12
    )
    one, other = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    copied = 2 * (1 << 30) / seconds_per(setting, lambda: other.copy_(one))
    found["device copy TB/s"] = round(copied / 1e12, 2)
    host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    up = seconds_per(setting, lambda: one[: 1 << 28].copy_(host, non_blocking=True))
    found["host to device GB/s"] = round((1 << 28) / up / 1e9, 1)
    small = torch.zeros(1, device="cuda")
    found["launch, µs"] = round(seconds_per(setting, lambda: small.add_(1), 3000) * 1e6, 1)
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
    with alone(setting):
        for name, images, side in plans_of(setting):
            rows = found[f"{name}, {images} images"] = {}
            rows["bare loop"] = round(images / _bare(setting, name, images, side, compiled=False))
            batch = noise(setting, images, side)
            for label, plan in plans.items():
                step = ahead(engine_of(setting, name, side, **plan), batch, images)
                rows[label] = round(images / seconds_per(setting, step))
            if not setting.dry:
                rows["bare loop, compiled"] = round(
                    images / _bare(setting, name, images, side, compiled=True)
                )
    return found


def waits(setting: Setting) -> Result:
    """Lines that make the host wait for the device: in one step, and in four batches evaluated."""
    found: Result = {}
    images, side = 8, 32 if setting.dry else 64
    with alone(setting):
        batch = noise(setting, images, side)
        for label, plan in (
            ("step", {}),
            ("step, everything on", {"train": {"ema": 0.9}, "clip_norm": 1.0}),
            ("step, fp16", {"train": {"precision": "fp16"}}),
        ):
            step = ahead(engine_of(setting, "resnet18", side, **plan), batch, images)
            for _ in range(3):
                step()
            found[label] = _lines(setting, step)
        engine = engine_of(setting, "resnet18", side)
        found["evaluation of 4 batches"] = _lines(setting, _evaluating(engine, [batch] * 4))
    return found


def evaluation(setting: Setting) -> Result:
    """Images a second of an evaluation, next to bare forward passes."""
    found: Result = {}
    with alone(setting):
        for name, images, side in plans_of(setting):
            engine = engine_of(setting, name, side)
            batches = [noise(setting, images, side) for _ in range(2 if setting.dry else 8)]
            seconds = seconds_per(setting, _evaluating(engine, batches), 3)
            model = engine.learner.model.eval()
            inputs = torch.randn(images, 3, side, side, device=engine.device)
            inputs = inputs.to(memory_format=torch.channels_last)

            def forward(model: Any = model, inputs: Any = inputs) -> None:
                with torch.inference_mode(), bf16(setting):
                    model(inputs)

            found[name] = {
                "evaluation": round(images * len(batches) / seconds),
                "bare": round(images / seconds_per(setting, forward)),
            }
    return found


def activations(setting: Setting) -> Result:
    """Peak memory in MiB and images a second, without and with activation checkpointing."""
    found: Result = {}
    with alone(setting):
        for name, images, side in plans_of(setting):
            batch = noise(setting, images, side)
            for on in (False, True):
                engine = engine_of(setting, name, side, train={"activation_checkpointing": on})
                step = ahead(engine, batch, images)
                if not setting.dry:
                    torch.cuda.reset_peak_memory_stats()
                pace = round(images / seconds_per(setting, step))
                peak = 0 if setting.dry else torch.cuda.max_memory_allocated() >> 20
                found[f"{name}, {'with' if on else 'without'}"] = {"MiB": peak, "pace": pace}
                del engine, step
    return found


def exchange(setting: Setting) -> Result:
    """The exchange of flags as many ranks have it: host waits, and microseconds for the host."""
    with alone(setting):
        agreement = Agreement(device_of(setting))
        agreement._alone = False
        if not setting.dry:
            agreement._stream = torch.cuda.Stream()

        def exchanged() -> None:
            agreement.propose(Signals(bad=True, fault=69))
            told = agreement.result()
            if not (told.bad and told.fault == 69) or told.stop:
                raise RuntimeError(f"told {told}")

        for _ in range(3):
            exchanged()
        return {
            "waits": _lines(setting, exchanged),
            "µs": round(seconds_per(setting, exchanged, 300) * 1e6),
            "total": total(1.5, 2.0, device=device_of(setting)),
        }


def _bare(setting: Setting, name: str, images: int, side: int, *, compiled: bool) -> float:
    """Seconds of a step on data that stays on the device, without anything around it."""
    device = device_of(setting)
    model = models.get_model(name, weights=None).to(device).to(memory_format=torch.channels_last)
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    inputs = torch.randn(images, 3, side, side, device=device)
    inputs = inputs.to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (images,), device=device)

    def step() -> None:
        with bf16(setting):
            outputs = model(inputs)
        F.cross_entropy(outputs.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return seconds_per(setting, step)


def _evaluating(engine: Engine, batches: list[Batch]) -> Callable[[], object]:
    learner = engine.learner
    return lambda: evaluate(
        learner.result,
        batches,
        precision=learner.precision,
        preprocessing=engine._preprocessing,
        classes=CLASSES,
        samples=1 + max(int(batch.ids.max()) for batch in batches),
        stopped=lambda: False,
    )


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
