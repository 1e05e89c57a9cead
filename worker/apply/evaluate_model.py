"""Evaluation of a finished model on a data set, by all ranks of a process group."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from worker.apply.match_classes import ClassMatch, match_classes
from worker.data.batch_requests import Request
from worker.data.loader import Batch
from worker.data.sample_keys import SampleNames
from worker.errors import StopRequested, WorkerError, error_of
from worker.job.dataset import Dataset
from worker.job.evaluation_feed import EvaluationFeed
from worker.job.loaders import Loaders
from worker.learn.evaluation import Findings, evaluate
from worker.learn.picked_images import gather_picks
from worker.model.classifier import Classifier
from worker.model.learner import precision_on
from worker.ranks.agreement import Signals, agree
from worker.ranks.process_group import device_of
from worker.ranks.rank import Rank

NAME = "set"
"""The name of the data set in requests."""


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation:
    """The result of an evaluation; complete on rank 0 alone."""

    findings: Findings
    """The sums over all ranks."""
    pictures: dict[str, list[dict[str, Any]]]
    """Images to look at, by kind, as JSON data."""
    left_out: dict[str, int]
    """Images of classes that the model does not know, by class."""
    bad_samples: tuple[str, ...]
    """Samples that could not be used, and why."""


def evaluate_model(
    classifier: Classifier,
    dataset: Dataset,
    *,
    rank: Rank,
    loaders: Loaders[EvaluationFeed],
    stopped: Callable[[], bool],
    advance: Callable[[int], None],
) -> ModelEvaluation:
    """Evaluate a model on each image of a data set once; called by all ranks together.

    Args:
        classifier: The model.
        dataset: The data set.
        rank: This rank.
        loaders: The source of batches.
        stopped: Returns whether a stop was requested.
        advance: Called for each batch with the number of its images.

    Raises:
        StopRequested: If a stop was requested; nothing is kept.
        WorkerError: If the images cannot be read.
    """
    match = match_classes(classifier.card.classes, dataset.index.classes)
    samples = dataset.index.samples
    taken = _Taken(match, advance)
    loaders.start()
    device = device_of(rank)
    request = Request(dataset=NAME, samples=loaders.feed.share(rank, samples))
    with contextlib.closing(loaders.batches(request)) as batches:
        findings = evaluate(
            classifier.model.to(device).to(memory_format=torch.channels_last),
            taken.translated(batches),
            precision=precision_on(device, "auto"),
            preprocessing=classifier.card.preprocessing,
            classes=len(classifier.card.classes),
            samples=samples,
            stopped=lambda: stopped() or taken.error is not None,
            temperature=classifier.card.temperature,
        )
    if findings is None:
        # Tells the two causes apart on all ranks: an error on one of them, or a stop.
        error = taken.error
        fault = agree(Signals(fault=int(error.code) if error else 0)).fault
        if fault:
            raise error if error and error.code == fault else error_of(fault)
        raise StopRequested("stopped on request; run it again to evaluate" if rank.leads else "")
    counts: list[dict[int, int]] = [{} for _ in range(dist.get_world_size())]
    bad: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(counts, dict(taken.left_out))
    dist.all_gather_object(bad, taken.bad)
    left_out = sum((Counter(part) for part in counts), Counter[int]())
    return ModelEvaluation(
        findings=findings,
        pictures=gather_picks(findings.picks, SampleNames(dataset.store, dataset.index)),
        left_out={dataset.index.classes[label]: n for label, n in sorted(left_out.items())},
        bad_samples=tuple(text for part in bad for text in part),
    )


class _Taken:
    """The batches of one rank, with the model's labels, and what was left out of them."""

    def __init__(self, match: ClassMatch, advance: Callable[[int], None]) -> None:
        self._labels = torch.from_numpy(match.labels)
        self._advance = advance
        self.left_out: Counter[int] = Counter()
        self.bad: list[str] = []
        self.error: WorkerError | None = None

    def translated(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches with the model's labels; images of unknown classes are holes."""
        try:
            for batch in batches:
                labels = self._labels[batch.labels]
                unknown = batch.valid & (labels < 0)
                self.left_out.update(batch.labels[unknown].tolist())
                self.bad += [problem.text for problem in batch.bad]
                yield replace(batch, labels=labels.clamp(min=0), valid=batch.valid & ~unknown)
                self._advance(len(batch.ids))
        except WorkerError as error:
            # Not raised here: the other ranks would wait for this one at the end of `evaluate`.
            self.error = error
