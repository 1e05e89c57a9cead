"""The plan of a sweep as its output records it, and what of it is left to do."""

import json
from collections.abc import Mapping
from typing import Annotated, NamedTuple

from pydantic import Field, JsonValue

from worker.errors import ConfigurationError
from worker.job.manifest_changes import flat
from worker.layout import SWEEP_NAME
from worker.logs import count
from worker.manifest import Manifest, check_manifest
from worker.manifest.training import Metric
from worker.store import ObjectMissing, Store
from worker.store.json_records import StoredRecord, get_json
from worker.sweep.halving import mean_of, rung_epochs, survivors
from worker.sweep.manifest import SweepManifest
from worker.sweep.trials import Settings, applied, repeats_of, trials_of

BEST_NAME, RESULTS, CLAIMS = "best.json", "results/", "claims/"
_MANIFESTS = (".yaml", ".yml")
_MAX_BYTES = 64 << 20

_Value = Annotated[dict[str, JsonValue], Field(max_length=100)]


class Unit(NamedTuple):
    """A stretch of one job: a repetition of a trial, up to a rung."""

    rung: int
    trial: int
    repeat: int

    @property
    def name(self) -> str:
        """Its name in the store; names sort by trial."""
        return f"{self.trial:05d}-{self.repeat:03d}-{self.rung:02d}"


class UnitResult(StoredRecord):
    """The outcome of a unit. It does not depend on who ran it."""

    epoch: Annotated[int, Field(ge=0)] = 0
    """The number of epochs after which the figures were measured."""
    value: float | None = None
    """The figure that trials are compared by; None if the trial has failed."""
    low: float | None = None
    """Lower limit of its 95% interval."""
    high: float | None = None
    """Upper limit of its 95% interval."""
    code: int = 0
    """The exit code of a trial that has failed."""


Results = Mapping[Unit, UnitResult]


class SweepPlan(StoredRecord):
    """A sweep: its manifest, that of its base, and the trials that follow from them."""

    sweep: dict[str, JsonValue]
    base: dict[str, JsonValue]
    trials: tuple[_Value, ...]
    repeats: tuple[_Value, ...]
    rungs: tuple[int, ...]

    @property
    def manifest(self) -> SweepManifest:
        """The manifest of the sweep."""
        return SweepManifest.model_validate_json(json.dumps(self.sweep))

    @property
    def metric(self) -> Metric:
        """The figure that trials are compared by."""
        return self.manifest.goal.metric

    def job_output(self, trial: int, repeat: int) -> str:
        """Return the prefix of a job's output, relative to that of the sweep."""
        more = f"-{repeat:03d}" if len(self.repeats) > 1 else ""
        return f"trials/{trial:05d}{more}/"

    def settings(self, trial: int, repeat: int) -> Settings:
        """Return all varied settings of a job."""
        return {**self.trials[trial], **self.repeats[repeat]}

    def job_manifest(self, trial: int, repeat: int, output: str) -> Manifest:
        """Return the manifest of a job.

        Args:
            trial: The number of the trial.
            repeat: The number of the repetition.
            output: The address of the sweep's output.

        Raises:
            ConfigurationError: If the settings cannot be combined.
        """
        sweep = self.manifest
        data = applied(self.base, self.settings(trial, repeat))
        more = f"-{repeat}" if len(self.repeats) > 1 else ""
        data["job"] = f"{sweep.sweep}-{trial}{more}"
        data["output"] = f"{output.rstrip('/')}/{self.job_output(trial, repeat)}"
        data["train"]["metric"] = self.metric
        shown = ", ".join(f"{path} {value}" for path, value in self.settings(trial, repeat).items())
        return check_manifest(data, f"trial {trial} ({shown})")


def make_plan(sweep: SweepManifest, base: Manifest) -> SweepPlan:
    """Plan a sweep. A pure function of its manifest and that of its base.

    Raises `ConfigurationError` if nothing would be validated, or never halved.
    """
    if not base.data.is_validated:
        raise ConfigurationError(
            "base: has no validation set to compare trials by; set its data.val or data.fold"
        )
    halving = sweep.halving
    if halving and halving.first.epochs >= base.train.epochs:
        raise ConfigurationError(
            f"halving.first.epochs: {halving.first.epochs}, but a trial has only "
            f"{count(base.train.epochs, 'epoch')} (train.epochs of base); set fewer, or remove "
            "halving"
        )
    return SweepPlan(
        sweep=sweep.model_dump(mode="json"),
        base=base.model_dump(mode="json"),
        trials=trials_of(sweep),
        repeats=repeats_of(sweep),
        rungs=rung_epochs(base.train.epochs, sweep.halving),
    )


def read_plan(store: Store) -> SweepPlan | None:
    """Return the plan in an output; None if there is none.

    Raises `ConfigurationError` if it is damaged.
    """
    try:
        plan = get_json(store, SWEEP_NAME, SweepPlan, _MAX_BYTES)
    except ObjectMissing:
        return None
    if plan is None:
        raise ConfigurationError(f"{store.uri}{SWEEP_NAME}: is damaged; use a new output")
    return plan


def require_own_output(plan: SweepPlan, store: Store) -> SweepPlan | None:
    """Return the plan in the output of a sweep; None if the output is unused.

    Args:
        plan: The plan of this start.
        store: The output.

    Raises:
        ConfigurationError: If the output holds anything but this sweep; names the first difference.
    """
    found = read_plan(store)
    if found is None:
        # The manifests of the sweep and of its base may well be there already.
        others = (info.key for info in store.list() if not info.key.endswith(_MANIFESTS))
        other = next(others, None)
        if other is None:
            return None
        found = read_plan(store)  # another worker may just have begun
        if found is None:
            raise ConfigurationError(
                f"output: {store.uri} already holds {other}, which is not of this sweep; set a "
                "different output"
            )
    _require_same(found, plan, store)
    return found


def _require_same(found: SweepPlan, wanted: SweepPlan, store: Store) -> None:
    for name in ("sweep", "base"):
        before, now = flat(getattr(found, name)), flat(getattr(wanted, name))
        for path in sorted({*before, *now}):
            if before.get(path) != now.get(path):
                raise ConfigurationError(
                    f"output: {store.uri} holds another sweep ({name}: {path} was "
                    f"{before.get(path)} and is now {now.get(path)}); set a different output"
                )


class Standing(NamedTuple):
    """The progress of a sweep."""

    rung: int
    """The rung that is being run."""
    trials: tuple[int, ...]
    """The trials of that rung."""
    pending: tuple[Unit, ...]
    """Its units without a result; empty once the sweep is done."""


def standing(plan: SweepPlan, results: Results) -> Standing:
    """Return how far a sweep has come. Pure, so all workers agree on it.

    Args:
        plan: The plan.
        results: The results so far.
    """
    trials = tuple(range(len(plan.trials)))
    halving = plan.manifest.halving
    for rung in range(len(plan.rungs)):
        units = [Unit(rung, t, r) for t in trials for r in range(len(plan.repeats))]
        pending = tuple(unit for unit in units if unit not in results)
        last = rung + 1 == len(plan.rungs)
        going_on = (
            ()
            if pending
            else survivors(rung_means(plan, results, rung, trials), plan.metric, halving)
        )
        if pending or last or not going_on:
            return Standing(rung, trials, pending)
        trials = going_on
    raise AssertionError("a plan has at least one rung")


def rung_means(
    plan: SweepPlan, results: Results, rung: int, trials: tuple[int, ...]
) -> dict[int, float | None]:
    """Return the mean of each trial over its repetitions.

    Args:
        plan: The plan.
        results: The results so far.
        rung: The rung.
        trials: The trials.

    Returns:
        The means; None for a trial that has failed or has not got there yet.
    """
    repeats = range(len(plan.repeats))
    missing = UnitResult()
    return {
        trial: mean_of([results.get(Unit(rung, trial, r), missing).value for r in repeats])
        for trial in trials
    }
