"""What a finished job leaves behind for others to use."""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from worker.checkpoint.commit import digested
from worker.checkpoint.snapshot import stream_model
from worker.model.card import CARD_NAME, WEIGHTS_NAME, Card
from worker.model.export import exports
from worker.train.job import Job


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
