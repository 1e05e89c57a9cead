"""Evaluation of the model on one of the job's data sets, by all ranks of an attempt."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from worker.data.batch_requests import Request
from worker.data.loader import Bad, Batch
from worker.data.sample_keys import SampleNames
from worker.errors import WorkerError, error_of
from worker.job.dataset import Dataset
from worker.learn.evaluation import Findings, evaluate
from worker.learn.picked_images import gather_picks
from worker.ranks.agreement import Signals, agree
from worker.ranks.process_group import total
from worker.train.attempt import Attempt
from worker.train.bad_samples import Quarantine
from worker.train.loaders import JobLoaders


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A finished evaluation."""

    findings: Findings
    """The sums over all ranks; see `Findings`."""
    pictures: dict[str, list[dict[str, Any]]]
    """Images that a person should look at, by kind, as JSON data; empty on ranks other than 0."""


class Evaluator:
    """A rank's share of a data set to evaluate on; all ranks call its methods together.

    Args:
        attempt: The attempt.
        name: Name of the data set: `val` or `test`.
        dataset: The data set.
        loaders: The source of batches.
    """

    def __init__(self, attempt: Attempt, name: str, dataset: Dataset, loaders: JobLoaders) -> None:
        self._attempt = attempt
        self._name = name
        self._dataset = dataset
        self._loaders = loaders
        share = loaders.feed.evaluation.share(attempt.rank, dataset.samples)
        self._samples = dataset.share(share)
        budget = attempt.job.manifest.data.error_budget
        self._bad = Quarantine(f"data.{name}", dataset, budget)
        self._error: WorkerError | None = None

    def run(
        self, model: nn.Module, *, temperature: float = 1.0, keep_logits: bool = False
    ) -> Evaluated:
        """Evaluate the model on each sample once.

        Args:
            model: The model.
            temperature: What the logits are divided by.
            keep_logits: Whether to keep the predictions themselves.

        Raises:
            StopRequested: If a stop was requested on any rank.
            WorkerError: If the samples of a rank cannot be read.
            DataError: If more samples are bad than the budget allows.
        """
        attempt, self._error = self._attempt, None
        bad: list[Bad] = []
        request = Request(dataset=self._name, samples=self._samples)
        with contextlib.closing(self._loaders.batches(request)) as batches:
            findings = evaluate(
                model,
                self._collecting_bad(batches, bad),
                precision=attempt.learner.precision,
                preprocessing=attempt.job.preprocessing,
                classes=len(self._dataset.index.classes),
                samples=self._dataset.index.samples,
                stopped=lambda: attempt.stop.requested or self._error is not None,
                temperature=temperature,
                keep_logits=keep_logits,
            )
        if findings is None:
            self._end_early()
        fresh = self._bad.fresh(bad)
        # `take` is a collective, so all ranks call it or none does.
        if total(len(fresh))[0]:
            self._bad.take(fresh, attempt)
            self._bad.require_budget(attempt)
        names = SampleNames(self._dataset.store, self._dataset.index)
        return Evaluated(findings=findings, pictures=gather_picks(findings.picks, names))

    def _end_early(self) -> NoReturn:
        """Commit the state that could not be evaluated; raise the error or `StopRequested`."""
        # Tells the two causes apart on all ranks: an error on one of them, or a stop.
        error = self._error
        fault = agree(Signals(fault=int(error.code) if error else 0)).fault
        if not fault:
            self._attempt.end_on_request(" before it was evaluated")
        self._attempt.commit()
        raise error if error and error.code == fault else error_of(fault)

    def _collecting_bad(self, batches: Iterable[Batch], bad: list[Bad]) -> Iterator[Batch]:
        """Yield the batches, adding the samples left out of them to `bad`."""
        try:
            for batch in batches:
                bad += batch.bad
                self._attempt.watchdog.beat()
                self._attempt.metrics.last_step().set(time.time())
                yield batch
        except WorkerError as error:
            # Not raised here: the other ranks would wait for this one in the all-reduce at the end
            # of `evaluate`, which now reports a stop to all.
            self._error = error
