"""Everything that a run has left in its store, read once."""

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
    """A run as its records tell it."""

    status: Status
    """Where it is."""
    settings: dict[str, Any]
    """The manifest's fields by their dotted names."""
    history: History
    """Its events."""
    started: dict[int, str | None]
    """When each attempt began, by its own clock, whether it recorded anything or not."""
    plan: dict[str, Any]
    """What `worker plan` showed at the start of the newest attempt."""
    environments: dict[int, dict[str, Any]]
    """What each attempt ran on."""
    evaluated: int | None
    """The step of the evaluation that is shown: that of the weights that were written, or the last
    one.
    """
    confusion: Rows | None
    """Its confusion matrix."""
    mistakes: list[dict[str, Any]]
    """Its worst mistakes."""
    bad_samples: list[dict[str, Any]]
    """Samples that were left out."""
    done: Done | None
    """The result; None if there is none yet."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        return list(self.plan.get("classes", []))


def read_run(store: Store) -> Run:
    """Read a run. Raises `ConfigurationError` for an address that holds none."""
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
    """The step of the evaluation to show, and the objects that tell of it by kind."""
    found: dict[int, dict[str, str]] = {}
    for name in names:  # in order of the attempts, so that the newest of a step wins
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
