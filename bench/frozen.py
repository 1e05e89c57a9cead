"""Frozen backbones: a step of ResNet-50, in full and with only the head trained.

python -m bench.frozen [--images 16] [--side 224]
"""

import argparse
import statistics
import time
from typing import Any

import torch.distributed as dist

from bench.learners import batch_of, engine_of, learner_of, manifest_of
from worker.memory import configure_memory
from worker.model.backbone import build_backbone

_ROUNDS = 5
PLANS: dict[str, list[dict[str, Any]]] = {
    "full": [{"match": "*"}],
    "frozen backbone": [{"match": "head"}, {"match": "backbone", "freeze": "always"}],
    "layer4 and head": [{"match": ["head", "layer4"]}, {"match": "*", "freeze": "always"}],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    configure_memory(keep_freed=True)
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    engines = {}
    for name, groups in PLANS.items():
        backbone = build_backbone("resnet50", 10, 0, options.side)
        manifest = manifest_of(groups)
        engines[name] = engine_of(backbone, learner_of(backbone, manifest), manifest)
    batch = batch_of(options.images, options.side, 10)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for step in range(_ROUNDS + 1):  # the first is not counted
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.step(step, batch, options.images)
            times[name].append(time.perf_counter() - began)
    full = statistics.median(times["full"][1:])
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])
        print(f"{name:<16} {median * 1000:7.0f} ms  {median / full:.2f} of a full step")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
