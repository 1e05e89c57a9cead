"""The results of a sweep's units: one object each, whoever writes it first."""

import json
import re

from worker.checkpoint.publication_record import read_done
from worker.errors import ExitCode
from worker.record.events import EvaluationEvent
from worker.record.history import read_history
from worker.store import ObjectMissing, Store
from worker.store.json_records import get_json
from worker.sweep.plan import RESULTS, SweepPlan, Unit, UnitResult

_MAX_CRASHES = 3
_NAME = re.compile(RESULTS + r"(\d{5,})-(\d{3,})-(\d{2,})\.json")


class ResultReader:
    """Reader of the results in an output, reading each only once.

    Args:
        store: The output of the sweep.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Unit, UnitResult] = {}

    def has(self, unit: Unit) -> bool:
        """Return whether a unit has a result by now."""
        if unit not in self._known:
            found = _get(self._store, f"{RESULTS}{unit.name}.json")
            if found:
                self._known[unit] = found
        return unit in self._known

    def read(self) -> dict[Unit, UnitResult]:
        """Return all results so far."""
        for info in self._store.list(RESULTS):
            match = _NAME.fullmatch(info.key)
            if not match:
                continue
            trial, repeat, rung = map(int, match.groups())
            unit = Unit(rung, trial, repeat)
            if unit not in self._known:
                found = _get(self._store, info.key)
                if found:
                    self._known[unit] = found
        return dict(self._known)


def write_result(store: Store, unit: Unit, result: UnitResult) -> None:
    """Write the result of a unit, unless there is an intact one."""
    key = f"{RESULTS}{unit.name}.json"
    data = json.dumps(result.model_dump(), indent=1).encode()
    if not store.put_if_absent(key, data) and _get(store, key) is None:
        store.put(key, data)


def measure_unit(plan: SweepPlan, unit: Unit, job: Store) -> UnitResult | None:
    """Return the result that the records of a job hold for a unit; None if it is not done.

    Args:
        plan: The plan of the sweep.
        unit: The unit.
        job: The output of its job.
    """
    until = plan.rungs[unit.rung]
    # The value is that at the end of the rung, unless the job has ended early.
    events = [e for e in read_history(job).of(EvaluationEvent) if e.epoch <= until]
    last = max(events, key=lambda event: event.epoch, default=None)
    if last is None or (last.epoch < until and not read_done(job)):
        return None
    return UnitResult(epoch=last.epoch, value=last.value, low=last.low, high=last.high)


def has_failed(job: Store) -> bool:
    """Return whether a job has failed for good: its loss diverged, or it crashed again and again.

    Args:
        job: The output of the job.
    """
    ends = [part.end for part in read_history(job).parts if part.end]
    crashes = sum(end.code == ExitCode.BUG for end in ends)
    return bool(ends and ends[-1].diverged) or crashes >= _MAX_CRASHES


def _get(store: Store, key: str) -> UnitResult | None:
    try:
        return get_json(store, key, UnitResult)
    except ObjectMissing:
        return None
