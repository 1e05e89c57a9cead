"""Samples that cannot be used: the same list on every rank, and how many are too many."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict

import torch.distributed as dist

from worker.data.error_budget import allowed
from worker.data.loader import Bad
from worker.job.job import Dataset
from worker.layout import bad_samples_name
from worker.metrics.registry import Metrics
from worker.store import Store

log = logging.getLogger(__name__)

_WARNINGS = 20  # the record lists them all


class Quarantine:
    """The bad samples of one data set; `field` is that of the manifest, for messages."""

    def __init__(self, field: str, dataset: Dataset, budget: float) -> None:
        self._field = field
        self._samples = dataset.index.samples
        self._budget = budget
        self._allowed = allowed(budget, self._samples)
        self._listed: dict[int, Bad] = {}

    @property
    def ids(self) -> tuple[int, ...]:
        """Return all ids, in order."""
        return tuple(sorted(self._listed))

    @property
    def budget_used(self) -> float:
        """The number of bad samples as a share of those allowed; where none is, their number."""
        return len(self._listed) / max(1, self._allowed)

    def fresh(self, bad: Iterable[Bad]) -> list[Bad]:
        """Return those of `bad` that are not listed yet."""
        return [sample for sample in bad if sample.id not in self._listed]

    def exchange(self, fresh: list[Bad], metrics: Metrics, *, warn: bool) -> None:
        """Take up what any rank has met; to be called by all ranks together.

        Args:
            fresh: The bad samples that this rank has met since.
            metrics: Where they are counted.
            warn: Whether to log a warning for each.
        """
        gathered: list[list[Bad]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, fresh)
        for bad in sorted((b for part in gathered for b in part), key=lambda bad: bad.id):
            if bad.id in self._listed:
                continue
            self._listed[bad.id] = bad
            metrics.bad_samples(bad.reason).inc()
            if warn and len(self._listed) <= _WARNINGS:
                log.warning("left out (%s): %s", bad.reason, bad.text)
            if warn and len(self._listed) == _WARNINGS:
                log.warning("further bad samples are only listed, in records/*/bad-samples/")

    def excess(self) -> str:
        """Return the complaint if more are bad than the budget allows, else an empty text."""
        count = len(self._listed)
        if count <= self._allowed:
            return ""
        first = next(iter(self._listed.values()))
        return (
            f"{self._field}: {count} of {self._samples} samples are bad, more than "
            f"data.error_budget, {self._budget:g}, allows; the first here: {first.text}; "
            "repair the shards, or pack or index again"
        )

    def write(self, store: Store, attempt: int) -> None:
        """List them in the record of the run."""
        rows = [asdict(bad) for bad in self._listed.values()]
        name = bad_samples_name(attempt, self._field.removeprefix("data."))
        store.put(name, json.dumps(rows, indent=1).encode())
