"""The HTML page of a sweep; the pages of its runs lie beside it."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from worker.charts import duration
from worker.judge.figure_text import METRIC_NAMES, metric_text
from worker.judge.measure import Measure
from worker.logs import count
from worker.report.compare import shown_setting
from worker.report.render_page import render
from worker.report.sweep_charts import effect_rows, effects, parallel
from worker.report.sweep_status import SweepStatus, trial_rows
from worker.sweep.halving import rung_sizes
from worker.sweep.plan import SweepPlan
from worker.sweep.standings import TrialStanding

_TONES = {"done": "good", "running": "going", "stopped": "going"}

Links = Mapping[int, Sequence[tuple[str, str]]]
"""The name and the address of the page of each run, by trial."""


def sweep_page(plan: SweepPlan, status: SweepStatus, links: Links) -> str:
    """Return the HTML page of a sweep.

    Args:
        plan: The plan of the sweep.
        status: Its state.
        links: The pages of its runs.
    """
    head, *rows = trial_rows(plan, status.trials)
    best = status.trials[0] if status.best else None
    measured = any(one.figure.value is not None for one in status.trials)
    return render(
        "sweep.html",
        title=status.sweep,
        address=status.output,
        state=status.state,
        tone=_TONES.get(status.state, "bad"),
        facts=_facts(plan, status),
        tiles=_tiles(plan, status, best),
        best=[(path, shown_setting(v)) for path, v in best.settings.items()] if best else [],
        parallel=Markup(parallel(plan, status.trials)) if measured else "",  # noqa: S704
        effects=[Markup(svg) for svg in effects(plan, status.trials)],  # noqa: S704
        effect_rows=effect_rows(plan, status.trials),
        first_epoch=plan.rungs[0],
        head=[*head, "runs"],
        rows=[
            (row, links.get(one.trial, [])) for row, one in zip(rows, status.trials, strict=True)
        ],
    )


def _facts(plan: SweepPlan, status: SweepStatus) -> list[tuple[str, str]]:
    manifest = plan.manifest
    sizes = rung_sizes(len(plan.trials), len(plan.rungs), manifest.halving)
    rungs = ", ".join(
        f"{count(size, 'trial')} to epoch {epochs}"
        for size, epochs in zip(sizes, plan.rungs, strict=True)
    )
    goal = f"{'lowest' if plan.metric == 'loss' else 'highest'} {METRIC_NAMES[plan.metric]}"
    heard = "" if status.age is None else f"{duration(status.age)} ago"
    facts = {
        "base": manifest.base,
        "goal": f"{goal} on the validation set",
        "rungs": rungs,
        "runs of each trial": str(len(plan.repeats)),
        "last heard of": heard if status.state != "done" else "",
    }
    return [(name, text) for name, text in facts.items() if text]


def _tiles(
    plan: SweepPlan, status: SweepStatus, best: TrialStanding | None
) -> list[tuple[str, str, str]]:
    figure = metric_text(plan.metric, best.figure if best else Measure())
    value, _, interval = figure.partition(" ")
    failed = sum(one.state == "failed" for one in status.trials)
    return [
        (f"best {METRIC_NAMES[plan.metric]}", value, interval.strip("()")),
        ("trial", str(best.trial) if best else "-", ""),
        ("rung", f"{status.rung + 1} of {len(status.rungs)}", f"epoch {status.rungs[status.rung]}"),
        ("runs of this rung", f"{status.done} of {status.units}", f"{status.running} running"),
        ("trials", str(len(status.trials)), f"{failed} failed" if failed else ""),
    ]
