"""Reader of all records that a run has left in its store."""

from dataclasses import dataclass
from typing import Any

from worker.checkpoint.claim import attempt_numbers, read_attempt
from worker.checkpoint.publication_record import Done, read_done
from worker.job.manifest_changes import flat
from worker.layout import BAD_SAMPLES, EVALUATION, RECORDS, environment_name, plan_name
from worker.learn.confusion import Rows
from worker.report.history import History, read_history
from worker.report.read_records import read_confusion, read_data
from worker.report.record_schemas import BadSampleList, EnvironmentRecord, MistakeList, PlanRecord
from worker.report.status import Status, read_status
from worker.store import Store


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
    plan: dict[str, Any]
    """The plan, as `worker plan` showed it at the start of the newest attempt."""
    environments: dict[int, dict[str, Any]]
    """The environment that each attempt ran in."""
    evaluated: int | None
    """The step of the evaluation to show: the one of the final weights, or else the last one.
    """
    confusion: Rows | None
    """The confusion matrix of that evaluation."""
    mistakes: list[dict[str, Any]]
    """The worst mistakes of that evaluation."""
    bad_samples: list[dict[str, Any]]
    """Samples that were left out."""
    done: Done | None
    """The result; None if there is none yet."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        return list(self.plan.get("classes", []))


def read_run(store: Store) -> Run:
    """Read a run. Raises `ConfigurationError` if the store holds none."""
    status, history = read_status(store), read_history(store)
    done = read_done(store)
    names = [info.key for info in store.list(RECORDS)]
    evaluated, found = _evaluation(names, done.weights.step if done else None)
    attempts = {number: read_attempt(store, number) for number in attempt_numbers(store)}
    manifests = [record.manifest for record in attempts.values() if record]
    plans = [read_data(store, plan_name(n), PlanRecord) for n in attempts]
    plan: dict[str, Any] = next((plan for plan in reversed(plans) if plan), {})
    environments = {
        number: facts
        for number in attempts
        if (facts := read_data(store, environment_name(number), EnvironmentRecord))
    }
    classes = len(plan.get("classes", ()))
    confusion = None
    mistakes: list[dict[str, Any]] = []
    if "confusion" in found:
        confusion = read_confusion(store, found["confusion"], classes)
    if "mistakes" in found:
        mistakes = read_data(store, found["mistakes"], MistakeList) or []
    return Run(
        status=status,
        settings=flat(manifests[-1]) if manifests else {},
        history=history,
        started={number: record.started if record else None for number, record in attempts.items()},
        plan=plan,
        environments=environments,
        evaluated=evaluated,
        confusion=confusion,
        mistakes=[row for row in mistakes if max(row["label"], row["predicted"]) < classes],
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


def _bad_samples(store: Store, names: list[str]) -> list[dict[str, Any]]:
    """Return the bad samples of each data set, from the last attempt that listed any."""
    last = {match[2]: name for name in names if (match := BAD_SAMPLES.fullmatch(name))}
    return [
        {"data": data, **row}
        for data, name in last.items()
        for row in read_data(store, name, BadSampleList) or []
    ]
