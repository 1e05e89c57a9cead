"""What an attempt and a finished job leave behind for others to read."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torchvision
from torch import nn

import worker
from worker.checkpoint.snapshot import encode_model
from worker.store import Store
from worker.train.job import DONE_NAME, Job
from worker.train.rank import Rank


def write_environment(store: Store, attempt: int, rank: Rank) -> None:
    """Keep what an attempt ran on."""
    facts = {
        "worker": worker.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "world_size": rank.world_size,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    store.put(f"records/{attempt:06d}/environment.json", json.dumps(facts, indent=1).encode())


def write_result(job: Job, model: nn.Module, attempt: int, metrics: Mapping[str, Any]) -> None:
    """Write `model` to `final/`, and then `done.json`, which ends the job for good."""
    weights = encode_model(model)
    preprocessing = asdict(job.preprocessing)
    preprocessing["interpolation"] = job.preprocessing.interpolation.value
    card = {
        "backbone": job.backbone.name,
        "head": job.backbone.head,
        "classes": list(job.train.index.classes),
        "preprocessing": preprocessing,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "metrics": dict(metrics),
    }
    job.output.put("final/model.safetensors", weights)
    job.output.put("final/model.json", json.dumps(card, indent=1).encode())
    done = {"attempt": attempt, **metrics}
    job.output.put(DONE_NAME, json.dumps(done, indent=1).encode())
