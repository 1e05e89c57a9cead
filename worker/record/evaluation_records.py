"""The records of evaluations: for each, a tally and the images that a person should look at."""

import contextlib
from collections.abc import Mapping
from typing import Any

from worker.errors import WorkerError
from worker.judge.tally_file import encode_tally
from worker.layout import pictures_name, tally_name
from worker.learn.evaluation import Findings
from worker.plain import plain
from worker.store import Store
from worker.store.json_records import put_json


class EvaluationRecords:
    """Writer of the records of an attempt's evaluations; only rank 0 has one.

    Args:
        store: The output of the job.
        attempt: The number of this attempt.
    """

    def __init__(self, store: Store, attempt: int) -> None:
        self._store = store
        self._attempt = attempt
        self._kept: list[int] = []

    def write(self, split: str, step: int, findings: Findings, pictures: Mapping[str, Any]) -> None:
        """Write the records of an evaluation.

        Args:
            split: Name of the data set: `val` or `test`.
            step: The step after which it ran.
            findings: The sums and outcomes over all ranks.
            pictures: Images to look at, by kind, as JSON data.
        """
        data = encode_tally(findings.tally, findings.outcomes)
        self._store.put(tally_name(self._attempt, split, step), data)
        put_json(self._store, pictures_name(self._attempt, split, step), plain(pictures))

    def keep(self, step: int, best_step: int | None) -> None:
        """Remove the records of all validations but the last one, at `step`, and the best."""
        gone = [old for old in self._kept if old not in (step, best_step)]
        self._kept = [old for old in self._kept if old not in gone] + [step]
        with contextlib.suppress(WorkerError):  # leftover objects only take up storage
            for old in gone:
                self._store.delete(tally_name(self._attempt, "val", old))
                self._store.delete(pictures_name(self._attempt, "val", old))
