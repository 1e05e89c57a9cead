"""The standings of the trials of a sweep, the best first."""

from dataclasses import dataclass
from typing import Literal

from worker.judge.measure import Measure
from worker.sweep.best import figure_of
from worker.sweep.halving import ranked
from worker.sweep.plan import Results, Standing, SweepPlan, Unit, rung_means, standing
from worker.sweep.trials import Settings

State = Literal["finished", "waiting", "continuing", "given up", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialStanding:
    """A trial, as far as it has come."""

    trial: int
    """Its number."""
    settings: Settings
    """Its settings, without those that repeat it."""
    rung: int | None
    """The last rung that all of its repetitions have reached; None if there is none yet."""
    figure: Measure
    """Its figure there, with a 95% interval."""
    first: Measure
    """Its figure at the first rung, which all trials reach."""
    state: State
    """`waiting` for a worker, or for the others of its rung; otherwise `continuing` until it has
    finished, was given up or has failed."""
    code: int
    """The exit code of a trial that has failed; 0 for any other."""


def standings(plan: SweepPlan, results: Results) -> list[TrialStanding]:
    """Return all trials: those that came furthest first, and the better first among equals.

    Args:
        plan: The plan.
        results: The results so far.
    """
    now = standing(plan, results)
    reached = {trial: _reached(plan, results, trial) for trial in range(len(plan.trials))}
    order: list[int] = []
    for level in range(now.rung, -1, -1):
        there = tuple(trial for trial, at in reached.items() if at == level)
        order += ranked(rung_means(plan, results, level, there), plan.metric)
    order += [trial for trial in reached if trial not in order]
    found = []
    for trial in order:
        rung, code = reached[trial], _code(plan, results, trial)
        figures = [
            figure_of(plan, results, Unit(at, trial, 0)) if at is not None else Measure()
            for at in (rung, 0)
        ]
        state: State = "failed" if code else _state(plan, results, now, trial)
        found.append(
            TrialStanding(
                trial=trial,
                settings=plan.trials[trial],
                rung=rung,
                figure=figures[0],
                first=figures[1],
                state=state,
                code=code,
            )
        )
    return found


def _state(plan: SweepPlan, results: Results, now: Standing, trial: int) -> State:
    """Return the state of a trial that has not failed."""
    if trial not in now.trials:
        return "given up"
    if all(unit.trial != trial for unit in now.pending):
        return "waiting" if now.pending and now.rung + 1 < len(plan.rungs) else "finished"
    return "continuing" if any(unit.trial == trial for unit in results) else "waiting"


def _reached(plan: SweepPlan, results: Results, trial: int) -> int | None:
    """Return the last rung at which all repetitions of a trial have a figure."""
    repeats = range(len(plan.repeats))
    whole = [
        rung
        for rung in range(len(plan.rungs))
        if all(
            (unit := Unit(rung, trial, repeat)) in results and results[unit].value is not None
            for repeat in repeats
        )
    ]
    return max(whole, default=None)


def _code(plan: SweepPlan, results: Results, trial: int) -> int:
    return max(
        (
            results[unit].code
            for rung in range(len(plan.rungs))
            for repeat in range(len(plan.repeats))
            if (unit := Unit(rung, trial, repeat)) in results
        ),
        default=0,
    )
