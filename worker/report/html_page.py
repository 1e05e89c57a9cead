"""HTML pages: a single file each, without external resources."""

import time
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from worker.charts import duration
from worker.judge.figure_text import METRIC_NAMES, metric_text
from worker.judge.measure import Measure
from worker.logs import count
from worker.manifest.defaults import is_default
from worker.manifest.training import Metric
from worker.record.events import CommitEvent, EvaluationEvent, StepEvent
from worker.record.history import AttemptHistory
from worker.report.compare import (
    best_evaluation,
    compare_runs,
    results_of,
    shown,
    shown_setting,
)
from worker.report.judgment_view import evaluation_view, figure_rows
from worker.report.read_run import Run
from worker.report.record_schemas import GroupRecord
from worker.report.render_page import render
from worker.report.run_charts import compared, learning, rates, resumes, speed, timeline
from worker.report.run_facts import cost_text, facts_of

_MAX_BAD = 100
_TONES = {"done": "good", "running": "going", "stopped": "going"}
_NOTHING = "-"
_SILENT = "no end recorded: killed, or still running"


def run_page(run: Run) -> str:
    """Return the HTML page of a run."""
    status, results = run.status, results_of(run)
    return render(
        "run.html",
        title=status.job,
        address=status.run,
        state=status.state,
        tone=_TONES.get(status.state, "bad"),
        reason=status.text if status.state != "done" else "",
        tiles=_tiles(run, results),
        curves=_drawn(learning(run)) if run.history.of(StepEvent) else [],
        rates=_drawn(rates(run)),
        speed=_drawn(speed(run)),
        timeline=_drawn(timeline(run)),
        resumes=resumes(run),
        groups=[_group_row(group) for group in run.plan.groups],
        attempts=_attempt_rows(run),
        **_judged(run),
        bad_samples=[
            (split, str(sample.id), sample.reason, sample.text)
            for split, sample in run.bad_samples[:_MAX_BAD]
        ],
        **_epochs(run.history.of(EvaluationEvent)),
        facts=facts_of(run),
        settings=[row for row, default in _settings(run) if not default],
        defaults=[row for row, default in _settings(run) if default],
        environment=_environment(run),
    )


def compare_page(runs: Sequence[Run]) -> str:
    """Return the HTML page that compares several runs."""
    comparison = compare_runs(runs)
    return render(
        "compare.html",
        title=f"{len(runs)} runs compared",
        names=comparison.titles,
        results=[(name, *texts) for name, texts in comparison.results],
        settings=[(name, *texts) for name, texts in comparison.settings],
        curves=_drawn(compared(runs, comparison.titles)),
        runs=[(title, run.status.run) for title, run in zip(comparison.titles, runs, strict=True)],
    )


def _drawn(charts: Sequence[str]) -> list[Markup]:
    """Mark charts as safe HTML: matplotlib has escaped the names in them."""
    return [Markup(chart) for chart in charts]  # noqa: S704


def _tiles(run: Run, results: dict[str, Any]) -> list[tuple[str, str, str]]:
    status = run.status
    steps = f"of {status.total_steps}" if status.total_steps else ""
    return [
        *_metric_tiles(run),
        ("validation loss", shown("last loss", results["last loss"]), ""),
        ("steps", str(results["steps"]), steps),
        (
            "trained for",
            duration(results["time"]),
            ", ".join([count(status.attempt, "attempt"), *cost_text(run).split(", ")[:1]]),
        ),
        ("images/s", shown("images/s", results["images/s"]), "median"),
        ("bad samples", str(results["bad samples"]), "left out"),
    ]


def _metric_tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return tiles for the metric: its best value, and the value of what `final/` has."""
    evaluations = run.history.of(EvaluationEvent)
    best = best_evaluation(evaluations)
    if best is None:
        return [("best accuracy", _NOTHING, ""), ("last accuracy", _NOTHING, "")]
    name, last = METRIC_NAMES[best.metric], evaluations[-1]
    first = (f"best {name}", *_value_of(best))
    kept = run.final and run.final.validation
    if run.final and kept:
        value, interval = _parts(metric_text(best.metric, kept.metric(best.metric)))
        return [first, (f"{name} of final/", value, f"{interval}, {run.final.source}")]
    return [first, (f"last {name}", *_value_of(last))]


def _value_of(event: EvaluationEvent) -> tuple[str, str]:
    figure = Measure(value=event.value, low=event.low, high=event.high)
    value, interval = _parts(metric_text(event.metric, figure))
    return value, ", ".join(filter(None, [interval, f"epoch {event.epoch}"]))


def _parts(text: str) -> tuple[str, str]:
    """Return a figure and its interval."""
    value, _, interval = text.partition(" ")
    return value, interval.strip("()")


def _group_row(group: GroupRecord) -> tuple[str, ...]:
    return (
        group.name,
        " ".join(group.match),
        f"{group.rate_peak:.3g}",
        f"{group.weight_decay:g}",
        f"{group.parameters:,}",
        f"{group.share:.2%}",
        "never" if group.release_step is None else str(group.release_step),
    )


def _attempt_rows(run: Run) -> list[tuple[str, ...]]:
    """Return a row per attempt, including those killed before they recorded anything."""
    told = {part.attempt: _attempt_row(part) for part in run.history.parts}
    silent = {
        # Five dashes for the columns between the start and the end, as in `_attempt_row`.
        number: (str(number), (at or _NOTHING)[:19].replace("T", " "), *"-----", _SILENT)
        for number, at in run.started.items()
    }
    return [row for _, row in sorted((silent | told).items())]


def _attempt_row(part: AttemptHistory) -> tuple[str, ...]:
    end, began = part.end, part.events[0].time
    ended = _SILENT
    if end:
        ended = f"{end.code}: {end.text or 'done'}"
    return (
        str(part.attempt),
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began)),
        duration(part.seconds),
        str(part.start.world_size),
        str(part.start.step),
        str(part.step),
        str(sum(isinstance(event, CommitEvent) for event in part.events)),
        ended,
    )


def _judged(run: Run) -> dict[str, Any]:
    """Return what is known of the model, as the template shows it."""
    final = run.final
    columns = {
        "validation": (final and final.validation) or (run.validation and run.validation.judgment),
        "test": (final and final.test) or (run.test and run.test.judgment),
    }
    known = {name: judgment for name, judgment in columns.items() if judgment}
    if not known:
        return {"figures": []}
    thresholds = final.thresholds if final else ()
    sizes = " and ".join(f"{one.images:,} {name} images" for name, one in known.items())
    shown = run.validation or run.test
    source = final.source if final else f"step {shown.step if shown else 0}"
    calibrated = ", with calibrated probabilities" if final and final.temperature != 1 else ""
    return {
        "sets": list(known),
        "figures": figure_rows(list(known.values())),
        "judged": f"The model of {source} on {sizes}{calibrated}.",
        "validation": run.validation and evaluation_view(run.validation, run.classes, thresholds),
        "test": run.test and evaluation_view(run.test, run.classes, thresholds),
    }


def _epochs(evaluations: Sequence[EvaluationEvent]) -> dict[str, Any]:
    """Return a row per evaluation, with top-5 accuracy if there are enough classes for it."""
    metric: Metric = next((event.metric for event in evaluations), "accuracy")
    head = ["epoch", "step", "validation loss", "accuracy"]
    rows = [
        [
            str(event.epoch),
            str(event.step),
            shown("loss", event.loss),
            shown("accuracy", event.accuracy),
        ]
        for event in evaluations
    ]
    if any(event.top5_accuracy is not None for event in evaluations):
        head.append("top 5")
        for row, event in zip(rows, evaluations, strict=True):
            row.append(shown("accuracy", event.top5_accuracy))
    if metric != "accuracy":
        head.append(METRIC_NAMES[metric])
    else:
        head[3] = "accuracy, 95% interval"
    for row, event in zip(rows, evaluations, strict=True):
        figure = metric_text(metric, Measure(value=event.value, low=event.low, high=event.high))
        if metric == "accuracy":
            row[3] = figure if event.value is not None else row[3]
        else:
            row.append(figure)
    return {"epochs": rows, "epochs_head": head}


def _settings(run: Run) -> list[tuple[tuple[str, str], bool]]:
    """Return each setting as shown, and whether it has its default value."""
    return [
        ((name, shown_setting(value)), is_default(name, value))
        for name, value in run.settings.items()
        if value is not None
    ]


def _environment(run: Run) -> list[tuple[str, str]]:
    """Return the environment of the run; if attempts differ, the values of each, in order."""
    rows: dict[str, list[str]] = {}
    for facts in run.environments.values():
        for name, value in facts.items():
            shown_value = shown_setting(value) if value != {} else _NOTHING
            # Only changes between successive attempts are listed.
            if rows.setdefault(name, [])[-1:] != [shown_value]:
                rows[name].append(shown_value)
    absent = [[shown_setting(None)], [_NOTHING]]
    return [(name, " → ".join(values)) for name, values in rows.items() if values not in absent]
