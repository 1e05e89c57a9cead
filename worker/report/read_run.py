"""Reader of all records that a run has left in its store."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.checkpoint.claim import attempt_numbers, read_attempt
from worker.checkpoint.publication_record import Done, read_done
from worker.job.manifest_changes import flat
from worker.layout import BAD_SAMPLES, EVALUATION, RECORDS, environment_name, plan_name
from worker.learn.confusion import Rows
from worker.report.history import History, read_history
from worker.report.read_records import read_confusion, read_or_skip
from worker.report.record_schemas import (
    BadSampleList,
    BadSampleRecord,
    EnvironmentRecord,
    MistakeList,
    MistakeRecord,
    PlanRecord,
)
from worker.report.status import Status, read_status
from worker.store import Store


class ListedBadSample(NamedTuple):
    """A bad sample, and the data set that lists it."""

    split: str
    """The data set: train or val."""
    sample: BadSampleRecord
    """The sample."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as described by its records."""

    status: Status
    """The current state of the run."""
    settings: dict[str, Any]
    """The manifest's fields, by dotted name."""
    history: History
    """The events of all attempts."""
    started: dict[int, str | None]
    """The start time of each attempt, by its own clock, even if it recorded nothing else."""
    plan: PlanRecord
    """The plan that the newest attempt recorded at its start, in the form of `worker plan`."""
    environments: dict[int, dict[str, Any]]
    """The environment that each attempt ran in."""
    evaluated: int | None
    """The step of the evaluation to show: that of the final weights, or else the last."""
    confusion: Rows | None
    """The confusion matrix of that evaluation."""
    mistakes: list[MistakeRecord]
    """The worst mistakes of that evaluation."""
    bad_samples: list[ListedBadSample]
    """Samples that were left out."""
    done: Done | None
    """The result; None if there is none yet."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        return list(self.plan.classes)


def read_run(store: Store) -> Run:
    """Read a run. Raises `ConfigurationError` if the store holds none."""
    status, history = read_status(store), read_history(store)
    done = read_done(store)
    names = [info.key for info in store.list(RECORDS)]
    evaluated, found = _evaluation(names, done.weights.step if done else None)
    attempts = {number: read_attempt(store, number) for number in attempt_numbers(store)}
    manifests = [record.manifest for record in attempts.values() if record]
    plans = [read_or_skip(store, plan_name(n), PlanRecord) for n in attempts]
    plan = next((plan for plan in reversed(plans) if plan), PlanRecord())
    environments = {
        number: record.root
        for number in attempts
        if (record := read_or_skip(store, environment_name(number), EnvironmentRecord))
    }
    class_count = len(plan.classes)
    confusion, mistakes = None, None
    if "confusion" in found:
        confusion = read_confusion(store, found["confusion"], class_count)
    if "mistakes" in found:
        mistakes = read_or_skip(store, found["mistakes"], MistakeList)
    return Run(
        status=status,
        settings=flat(manifests[-1]) if manifests else {},
        history=history,
        started={number: record.started if record else None for number, record in attempts.items()},
        plan=plan,
        environments=environments,
        evaluated=evaluated,
        confusion=confusion,
        mistakes=[
            mistake
            for mistake in (mistakes.root if mistakes else ())
            # The plan may be missing, and the page shows mistakes by class name.
            if max(mistake.label, mistake.predicted) < class_count
        ],
        bad_samples=_bad_samples(store, names),
        done=done,
    )


def _evaluation(names: list[str], wanted: int | None) -> tuple[int | None, dict[str, str]]:
    """Return the step of the evaluation to show, and the names of its objects, by kind."""
    found: dict[int, dict[str, str]] = {}
    for name in names:  # in attempt order, so that the newest evaluation of a step wins
        match = EVALUATION.fullmatch(name)
        if match:
            found.setdefault(int(match[3]), {})[match[2]] = name
    step = wanted if wanted in found else max(found, default=None)
    return step, found[step] if step is not None else {}


def _bad_samples(store: Store, names: list[str]) -> list[ListedBadSample]:
    """Return the bad samples of each data set, from the last attempt that listed any."""
    # Names are sorted by attempt, and the last one of each split wins.
    last = {match[2]: name for name in names if (match := BAD_SAMPLES.fullmatch(name))}
    return [
        ListedBadSample(split, sample)
        for split, name in last.items()
        if (listed := read_or_skip(store, name, BadSampleList))
        for sample in listed.root
    ]
