"""All that a run has left in its store, read once."""

import re
from dataclasses import dataclass
from typing import Any

from worker.checkpoint.attempt import ATTEMPTS
from worker.report.history import History, read_history
from worker.report.reading import read_array, read_json
from worker.report.status import Status, read_status
from worker.store import Store
from worker.train.changes import flat
from worker.train.record import Confusion

_EVALUATION = re.compile(r"records/(\d+)/(confusion|mistakes)/(\d+)\.\w+")
_BAD = re.compile(r"records/(\d+)/bad-samples/(\w+)\.json")


@dataclass(frozen=True)
class Run:
    """A run as its records tell it.

    `settings` are the manifest's fields by name; `started` says of every attempt when it began, by
    its own clock, whether it told anything or not; `plan` is what `worker plan` showed and
    `environments` what the attempts ran on, by number. `confusion`, `mistakes` are of the
    evaluation at step `evaluated`: that of the weights that were written, or the last one.
    """

    status: Status
    settings: dict[str, Any]
    history: History
    started: dict[int, str | None]
    plan: dict[str, Any]
    environments: dict[int, dict[str, Any]]
    evaluated: int | None
    confusion: Confusion | None
    mistakes: list[dict[str, Any]]
    bad_samples: list[dict[str, Any]]
    done: dict[str, Any] | None

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        return list(self.plan.get("classes", []))


def read_run(store: Store) -> Run:
    """Read a run. Raises `ConfigurationError` for an address that holds none."""
    status, history = read_status(store), read_history(store)
    settings = flat(read_json(store, "manifest.json") or {})
    done = read_json(store, "done.json")
    wanted = done["weights"]["step"] if done else None
    names = [info.key for info in store.list("records/")]
    evaluated, found = _evaluation(names, wanted)
    started = _attempts(store)
    attempts = sorted(started)
    plans = [read_json(store, f"records/{number:06d}/plan.json") for number in attempts]
    environments = {
        number: facts
        for number in attempts
        if (facts := read_json(store, f"records/{number:06d}/environment.json"))
    }
    return Run(
        status=status,
        settings=settings,
        history=history,
        started=started,
        plan=next((plan for plan in reversed(plans) if plan), {}),
        environments=environments,
        evaluated=evaluated,
        confusion=read_array(store, found["confusion"]) if "confusion" in found else None,
        mistakes=read_json(store, found["mistakes"]) or [] if "mistakes" in found else [],
        bad_samples=_bad_samples(store, names),
        done=done,
    )


def _attempts(store: Store) -> dict[int, str | None]:
    """When each attempt was claimed, by its number."""
    found = {}
    for info in store.list(ATTEMPTS):
        number = info.key.removeprefix(ATTEMPTS).removesuffix(".json")
        if number.isdecimal():
            found[int(number)] = (read_json(store, info.key) or {}).get("started")
    return found


def _evaluation(names: list[str], wanted: int | None) -> tuple[int | None, dict[str, str]]:
    """The step of the evaluation to show, and the objects that tell of it by kind."""
    found: dict[int, dict[str, str]] = {}
    for name in names:  # in order of the attempts, so that the newest of a step wins
        match = _EVALUATION.fullmatch(name)
        if match:
            found.setdefault(int(match[3]), {})[match[2]] = name
    step = wanted if wanted in found else max(found, default=None)
    return step, found[step] if step is not None else {}


def _bad_samples(store: Store, names: list[str]) -> list[dict[str, Any]]:
    """Those that the last attempt to list any has listed, of each data set."""
    last = {match[2]: name for name in names if (match := _BAD.fullmatch(name))}
    return [
        {"data": data, **row} for data, name in last.items() for row in read_json(store, name) or []
    ]
