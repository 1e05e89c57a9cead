"""What an attempt and a finished job leave behind for others to read."""

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import nn

import worker
from worker.checkpoint.commit import digested
from worker.checkpoint.snapshot import stream_model
from worker.model.card import CARD_NAME, WEIGHTS_NAME, Card
from worker.model.export import exports
from worker.store import Store
from worker.train.job import Job
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


def write_model(job: Job, model: nn.Module, result: Mapping[str, Any]) -> None:
    """Write `model` with all that it takes to use it, and its `result`, to `final/`."""
    weights, digest = stream_model(model), hashlib.sha256()
    job.output.abort_uploads(f"final/{WEIGHTS_NAME}")
    job.output.put_stream(f"final/{WEIGHTS_NAME}", weights.size, digested(weights.pieces(), digest))
    for export, data in exports(model, job.preprocessing.crop_size, job.manifest.final):
        job.output.put(f"final/{export}", data)
    card = Card(
        job.backbone.name,
        job.backbone.head,
        job.train.index.classes,
        job.preprocessing,
        digest.hexdigest(),
        dict(result),
    )
    job.output.put(f"final/{CARD_NAME}", card.encode())
