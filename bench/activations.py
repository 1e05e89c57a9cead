"""Activation checkpointing: peak memory and time of a step, with and without it.

python -m bench.activations [--images 16] [--side 224]
"""

import argparse
import os
import resource
import statistics
import time

import torch
import torch.distributed as dist

from bench.learners import batch_of, engine_of, learner_of, manifest_of
from worker.model.backbone import build_backbone

_MODELS = ("resnet50", "efficientnet_b0", "vit_b_16")
_STEPS = 4  # the first is not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)  # forks may use OpenMP only if this process has not
    print(f"{'':<18}{'activations, MB':>26}{'of':>6}{'step':>20}{'of':>7}")
    for name in _MODELS:
        (plain, slow), (less, more) = (
            _forked(name, options.images, options.side, setting=setting)
            for setting in (False, True)
        )
        print(
            f"{name:<18}{plain / 1e6:14.0f} -> {less / 1e6:<8.0f}{less / plain:6.2f}"
            f"{slow:10.2f} -> {more:.2f} s{more / slow:7.2f}",
            flush=True,
        )


def _forked(name: str, images: int, side: int, *, setting: bool) -> tuple[float, float]:
    """`_measure` in a process of its own, as only the highest memory of a process is known."""
    read, write = os.pipe()
    if os.fork() == 0:
        found = _measure(name, images, side, setting=setting)
        os.write(write, " ".join(map(str, found)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        memory, seconds = map(float, pipe.read().split())
    os.wait()
    return memory, seconds


def _measure(name: str, images: int, side: int, *, setting: bool) -> tuple[float, float]:
    """Bytes that steps add to those of the model and its optimizer, and seconds of a step."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    backbone = build_backbone(name, 10, 0, side)
    manifest = manifest_of([{"match": "*"}], {"activation_checkpointing": setting})
    engine = engine_of(backbone, learner_of(backbone, manifest), manifest)
    engine.step(0, batch_of(1, side, 10), 1)
    before, seconds = _peak(), []
    batch = batch_of(images, side, 10)
    for step in range(1, _STEPS + 1):
        began = time.perf_counter()
        engine.step(step, batch, images)
        seconds.append(time.perf_counter() - began)
    return _peak() - before, statistics.median(seconds[1:])


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


if __name__ == "__main__":
    main()
