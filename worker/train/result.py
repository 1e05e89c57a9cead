"""What an attempt and a finished job leave behind for others to read."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torchvision

import worker
from worker.checkpoint.snapshot import encode_model
from worker.store import ObjectMissing, Store
from worker.train.job import Job
from worker.train.rank import Rank

_DONE = "done.json"


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


def write_result(job: Job, attempt: int, metrics: Mapping[str, Any]) -> None:
    """Write `final/`, and then `done.json`, which ends the job for good."""
    weights = encode_model(job.backbone.model)
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
    done = {"attempt": attempt, "identity": job.identity, **metrics}
    job.output.put(_DONE, json.dumps(done, indent=1).encode())


def read_done(store: Store) -> dict[str, Any] | None:
    """The result of a finished job, None while there is none."""
    try:
        done: dict[str, Any] = json.loads(store.get(_DONE))
    except ObjectMissing:
        return None
    return done
