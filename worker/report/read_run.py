"""Reader of all records that a run has left in its store."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.checkpoint.claim import attempt_numbers, read_attempt
from worker.checkpoint.publication_record import Done, read_done
from worker.job.manifest_changes import flat
from worker.judge.final_figures import FinalFigures
from worker.layout import (
    BAD_SAMPLES,
    FINAL,
    JUDGMENT_NAME,
    RECORDS,
    environment_name,
    plan_name,
)
from worker.record.history import History, read_history
from worker.record.read_records import read_or_skip
from worker.report.read_evaluation import ShownEvaluation, read_evaluation
from worker.report.record_schemas import (
    BadSampleList,
    BadSampleRecord,
    EnvironmentRecord,
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
    validation: ShownEvaluation | None
    """The evaluation of the final weights on the validation set, or else the last one."""
    test: ShownEvaluation | None
    """The evaluation on the test set."""
    final: FinalFigures | None
    """The figures of the finished model."""
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
    attempts = {number: read_attempt(store, number) for number in attempt_numbers(store)}
    manifests = [record.manifest for record in attempts.values() if record]
    plans = [read_or_skip(store, plan_name(n), PlanRecord) for n in attempts]
    plan = next((plan for plan in reversed(plans) if plan), PlanRecord())
    environments = {
        number: record.root
        for number in attempts
        if (record := read_or_skip(store, environment_name(number), EnvironmentRecord))
    }
    step = done.weights.step if done else None
    validation, test = (
        read_evaluation(store, names, split, step=step, classes=plan.classes)
        for split in ("val", "test")
    )
    return Run(
        status=status,
        settings=flat(manifests[-1]) if manifests else {},
        history=history,
        started={number: record.started if record else None for number, record in attempts.items()},
        plan=plan,
        environments=environments,
        validation=validation,
        test=test,
        final=_read_figures(store) if done else None,
        bad_samples=_bad_samples(store, names),
        done=done,
    )


def _read_figures(store: Store) -> FinalFigures | None:
    # Tens of thousands of classes take more room than other records.
    return read_or_skip(store, FINAL + JUDGMENT_NAME, FinalFigures, 1 << 28)


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
