"""The state of a sweep, from its store alone."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from worker.charts import bar, duration, table
from worker.environment import Settings
from worker.judge.figure_text import METRIC_NAMES, metric_text
from worker.logs import count
from worker.store import Store
from worker.sweep.best import best_of, describe_best
from worker.sweep.plan import CLAIMS, RESULTS, SweepPlan, standing
from worker.sweep.results import ResultReader
from worker.sweep.standings import TrialStanding, standings

_MAX_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """The progress of a sweep."""

    sweep: str
    """Its name."""
    output: str
    """The address of its output."""
    state: str
    """`done`, `running`, `stopped` if no worker is at it, or `failed` if all trials have."""
    rung: int
    """The rung that is being run, from 0."""
    rungs: tuple[int, ...]
    """The epochs up to which the trials of each rung are trained."""
    units: int
    """Runs in this rung."""
    done: int
    """Runs of this rung that have a result."""
    running: int
    """Runs that a worker is at."""
    best: str
    """The best trial so far, as text; empty if there is none yet."""
    trials: list[TrialStanding]
    """All trials, the best first."""
    age: float | None
    """Seconds since a worker was last heard of; None if none ever was."""

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON data."""
        more = {
            "trials": [
                {**asdict(one), "figure": one.figure.model_dump(), "first": one.first.model_dump()}
                for one in self.trials
            ]
        }
        return {**asdict(self), **more}


def read_sweep_status(plan: SweepPlan, store: Store) -> SweepStatus:
    """Return the state of a sweep."""
    results = ResultReader(store).read()
    now = standing(plan, results)
    patience = Settings.from_env().takeover_seconds
    claims = [info.modified for info in store.list(CLAIMS)]
    heard = [*claims, *(info.modified for info in store.list(RESULTS))]
    running = sum(time.time() - at < patience for at in claims)
    best = best_of(plan, results)
    state = "running" if running else "stopped"
    if not now.pending:
        state = "done" if best else "failed"
    units = len(now.trials) * len(plan.repeats)
    return SweepStatus(
        sweep=plan.manifest.sweep,
        output=store.uri,
        state=state,
        rung=now.rung,
        rungs=plan.rungs,
        units=units,
        done=units - len(now.pending),
        running=running if now.pending else 0,
        best=describe_best(plan, best, so_far=bool(now.pending)) if best else "",
        trials=standings(plan, results),
        age=max(0.0, time.time() - max(heard)) if heard else None,
    )


def describe_sweep_status(plan: SweepPlan, status: SweepStatus) -> str:
    """Format the state as text: facts, and a table of the best trials."""
    share = status.done / max(1, status.units)
    heard = "" if status.age is None else f", last heard of {duration(status.age)} ago"
    rows = {
        "sweep": f"{status.sweep}, {status.output}",
        "state": f"{status.state}{heard}",
        "rung": f"{status.rung + 1} of {len(status.rungs)}, up to epoch "
        f"{status.rungs[status.rung]}: {status.done} of {count(status.units, 'run')}  {bar(share)}",
        "running": count(status.running, "run") if status.running else "",
        "best": status.best,
    }
    lines = [f"{name:<9} {text}" for name, text in rows.items() if text]
    head, *body = trial_rows(plan, status.trials)
    more = [f"and {len(body) - _MAX_SHOWN} more"] if len(body) > _MAX_SHOWN else []
    return "\n".join([*lines, "", *table([head, *body[:_MAX_SHOWN]]), *more])


def trial_rows(plan: SweepPlan, trials: list[TrialStanding]) -> list[list[str]]:
    """Return a table of the trials with a heading."""
    paths = list(dict.fromkeys(path for trial in plan.trials for path in trial))
    rows = [["trial", *paths, METRIC_NAMES[plan.metric], "epochs", "state"]]
    for one in trials:
        epochs = "" if one.rung is None else str(plan.rungs[one.rung])
        code = f" ({one.code})" if one.code else ""
        figure = metric_text(plan.metric, one.figure)
        settings = [_shown(one.settings[path]) for path in paths]
        rows.append([str(one.trial), *settings, figure, epochs, f"{one.state}{code}"])
    return rows


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
