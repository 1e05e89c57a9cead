"""Evaluation on the validation set during training."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from worker.data.batch_requests import Request
from worker.data.epoch_plan import split
from worker.data.loader import Bad, Batch
from worker.data.sample_keys import SampleNames
from worker.errors import WorkerError
from worker.job.job import Dataset, Job
from worker.learn.confusion import Rows
from worker.learn.evaluation import Evaluation, evaluate
from worker.learn.worst_images import gather_worst
from worker.model.learner import Learner
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.train.bad_samples import Quarantine
from worker.train.batches import VAL
from worker.train.loaders import Loaders


class Validation:
    """A rank's share of the validation set; `bad` lists the samples that could not be used.

    Args:
        job: The job.
        val: Its validation set.
        rank: This rank.
        loaders: The source of batches.
        beat: Called for each batch, to show that the evaluation makes progress.
    """

    def __init__(
        self, job: Job, val: Dataset, *, rank: Rank, loaders: Loaders, beat: Callable[[], None]
    ) -> None:
        self._job = job
        self._val = val
        self._loaders = loaders
        self._beat = beat
        self._samples = range(*split(val.index.samples, rank.rank, rank.world_size))
        self.bad = Quarantine("data.val", val, job.manifest.data.error_budget)
        self.error: WorkerError | None = None
        """The error that stopped this rank during the last evaluation, if any."""
        self.fresh: list[Bad] = []
        """Bad samples that this rank first found in the last evaluation."""

    def run(
        self, learner: Learner, stop: StopFlag
    ) -> tuple[Evaluation, Rows, list[dict[str, Any]]] | None:
        """Evaluate over all ranks; return None if a stop was requested or a rank hit an `error`.

        The third item holds the samples with the highest loss, as JSON data.
        """
        self.error = None
        bad: list[Bad] = []
        batches = self._loaders.batches(Request(dataset=VAL, samples=self._samples))
        with contextlib.closing(batches):
            result = evaluate(
                learner,
                self._collecting_bad(batches, bad),
                preprocessing=self._job.preprocessing,
                classes=len(self._val.index.classes),
                stopped=lambda: stop.requested or self.error is not None,
            )
        self.fresh = [] if result is None else self.bad.fresh(bad)
        if result is None:
            return None
        evaluation, confusion, mistakes = result
        names = SampleNames(self._val.store, self._val.index)
        return evaluation, confusion, gather_worst(mistakes, names)

    def _collecting_bad(self, batches: Iterable[Batch], bad: list[Bad]) -> Iterator[Batch]:
        """Yield the batches, adding the samples left out of them to `bad`."""
        try:
            for batch in batches:
                bad += batch.bad
                self._beat()
                yield batch
        except WorkerError as error:
            # Not raised here: the other ranks would wait for this one in the all-reduce at the end
            # of `evaluate`, which now reports a stop to all.
            self.error = error
