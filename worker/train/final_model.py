"""The final model of a job, with its figures, exports, cards and manifest."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from worker.checkpoint.commit import Part
from worker.checkpoint.publication_record import stage_part
from worker.checkpoint.snapshot import stream_model
from worker.checkpoint.tensor_files import TensorStream, stream_bytes
from worker.job.job import Job
from worker.judge.final_figures import FinalFigures
from worker.layout import (
    CARD_NAME,
    FINAL,
    JUDGMENT_NAME,
    MANIFEST_NAME,
    README_NAME,
    WEIGHTS_NAME,
)
from worker.model.export import exports
from worker.model.model_card import Card
from worker.plain import plain
from worker.train.final_readme import describe_model


def stage_result(
    job: Job,
    attempt: int,
    model: nn.Module,
    *,
    figures: FinalFigures,
    result: Mapping[str, Any],
    beat: Callable[[], None],
) -> list[Part]:
    """Stage a model, with everything needed to use it, under its attempt's name.

    Args:
        job: The job that trained the model.
        attempt: The number of the attempt that trained it.
        model: The model.
        figures: Its figures, temperature and thresholds.
        result: The results of the training, as JSON data.
        beat: Called between parts, to show that this rank is alive.

    Returns:
        The staged parts.
    """
    # The weights come first, as the model card contains their digest.
    weights = stage_part(job.output, attempt, FINAL + WEIGHTS_NAME, stream_model(model))
    card = Card(
        backbone=job.backbone.name,
        head=job.backbone.head,
        classes=job.train.index.classes,
        preprocessing=job.preprocessing,
        sha256=weights.sha256,
        metrics=dict(result),
        temperature=figures.temperature,
        thresholds={one.name: one.probability for one in figures.thresholds},
    )
    parts = [weights]
    for name, stream in _beside(job, model, card, figures):
        beat()
        parts.append(stage_part(job.output, attempt, name, stream))
    return parts


def _beside(
    job: Job, model: nn.Module, card: Card, figures: FinalFigures
) -> Iterator[tuple[str, TensorStream]]:
    for export, data in exports(model, card, job.manifest.job, job.manifest.final):
        yield FINAL + export, stream_bytes(data)
    yield FINAL + CARD_NAME, stream_bytes(card.encode())
    if figures.validation or figures.test:
        data = json.dumps(plain(figures.model_dump()), indent=1).encode()
        yield FINAL + JUDGMENT_NAME, stream_bytes(data)
    readme = describe_model(job, card, figures)
    yield FINAL + README_NAME, stream_bytes(readme.encode())
    manifest = json.dumps(job.manifest.model_dump(mode="json"), indent=1)
    yield MANIFEST_NAME, stream_bytes(manifest.encode())
