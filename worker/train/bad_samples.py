"""Samples that cannot be used: a list that all ranks share, and a limit on its length."""

import logging
from collections.abc import Iterable
from dataclasses import asdict

import torch.distributed as dist

from worker.data.error_budget import allowed
from worker.data.loader import Bad
from worker.errors import DataError
from worker.job.dataset import Dataset
from worker.layout import bad_samples_name
from worker.store.json_records import put_json
from worker.train.attempt import Attempt

log = logging.getLogger(__name__)

_WARNINGS = 20  # the record lists them all


class Quarantine:
    """The bad samples of one data set.

    Args:
        field: The manifest field of the data set, such as `data.train`, for messages.
        dataset: The data set.
        budget: The share of its samples that may be bad, from 0 to 1.
    """

    def __init__(self, field: str, dataset: Dataset, budget: float) -> None:
        self._field = field
        self._samples = dataset.samples
        self._budget = budget
        self._allowed = allowed(budget, self._samples)
        self._listed: dict[int, Bad] = {}

    @property
    def ids(self) -> tuple[int, ...]:
        """Return the ids of all bad samples, in ascending order."""
        return tuple(sorted(self._listed))

    def fresh(self, bad: Iterable[Bad]) -> list[Bad]:
        """Return the samples of `bad` that are not listed yet."""
        return [sample for sample in bad if sample.id not in self._listed]

    def take(self, fresh: list[Bad], attempt: Attempt) -> None:
        """Add the bad samples found by any rank to the list, the metrics and the records.

        Called by all ranks together, each with the bad samples found since the last call.
        """
        gathered: list[list[Bad]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, fresh)
        # In the same order on every rank, so that all have the same list and the same first sample.
        for bad in sorted((b for part in gathered for b in part), key=lambda bad: bad.id):
            # Two ranks may report the same sample: with MixUp or CutMix, a rank also reads the last
            # one of the preceding rank's part.
            if bad.id in self._listed:
                continue
            self._listed[bad.id] = bad
            attempt.metrics.bad_samples(bad.reason).inc()
            if attempt.leads and len(self._listed) <= _WARNINGS:
                log.warning("left out (%s): %s", bad.reason, bad.text)
            if attempt.leads and len(self._listed) == _WARNINGS:
                log.warning("further bad samples are only listed in records/*/bad-samples/")

        attempt.metrics.budget_used().set(len(self._listed) / max(1, self._allowed))
        if attempt.leads:
            self._write(attempt)

    def require_budget(self, attempt: Attempt) -> None:
        """Commit and raise `DataError` if more samples are bad than the budget allows."""
        count = len(self._listed)
        if count <= self._allowed:
            return
        # Once the shards are repaired, the next attempt resumes here. If these are
        # training samples, the list is part of the checkpoint, and they are reread first.
        attempt.commit()
        first = next(iter(self._listed.values()))
        raise DataError(
            f"{self._field}: {count} of {self._samples} samples are bad, more than "
            f"data.error_budget, {self._budget:g}, allows; the first one: {first.text}; "
            "repair the shards, or pack or index them again"
            if attempt.leads
            else ""
        )

    def _write(self, attempt: Attempt) -> None:
        rows = [asdict(bad) for bad in self._listed.values()]
        name = bad_samples_name(attempt.durable.attempt, self._field.removeprefix("data."))
        put_json(attempt.job.output, name, rows)
