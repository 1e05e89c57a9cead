"""HTML pages: a single file each, without external resources."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from worker.charts import duration
from worker.learn.confusion import Rows, by_class
from worker.logs import count
from worker.manifest.defaults import is_default
from worker.record.events import CommitEvent, EvaluationEvent, StepEvent
from worker.report.compare import compare_runs, results_of, shown, shown_setting
from worker.report.history import AttemptHistory
from worker.report.read_run import Run
from worker.report.record_schemas import GroupRecord, MistakeRecord
from worker.report.render_page import render
from worker.report.run_charts import compared, learning, rates, resumes, speed, timeline
from worker.report.run_facts import describe_cost, facts_of

_MAX_IN_MATRIX = 20
_MAX_ROWS = 20
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
        evaluated=run.evaluated,
        **_classes(run.confusion, run.classes),
        mistakes=[_picture(mistake, run.classes) for mistake in run.mistakes],
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
    status, done = run.status, run.done
    steps = f"of {status.total_steps}" if status.total_steps else ""
    tiles = [
        ("best accuracy", shown("accuracy", results["best accuracy"]), ""),
        ("last accuracy", shown("accuracy", results["last accuracy"]), ""),
        ("validation loss", shown("last loss", results["last loss"]), ""),
        ("steps", str(results["steps"]), steps),
        (
            "trained for",
            duration(results["time"]),
            ", ".join(filter(None, [count(status.attempt, "attempt"), describe_cost(run)])),
        ),
        ("images/s", shown("images/s", results["images/s"]), "median"),
        ("bad samples", str(results["bad samples"]), "left out"),
    ]
    if results["best accuracy"] is not None:
        tiles[0] = (*tiles[0][:2], f"in epoch {results['in epoch']}")
    if done and done.weights.accuracy is not None:
        kept = done.weights
        tiles[1] = ("accuracy of final/", f"{kept.accuracy:.2%}", f"at step {kept.step}")
    return tiles


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


def _classes(rows: Rows | None, names: Sequence[str]) -> dict[str, Any]:
    """Return the worst classes, and the confusion matrix or, if large, its worst pairs."""
    if rows is None or not names:
        return {"classes": [], "matrix": [], "pairs": [], "names": []}
    totals, right = by_class(rows, len(names))
    wrong = rows[rows[:, 0] != rows[:, 1]]
    wrong = wrong[np.argsort(-wrong[:, 2], kind="stable")]
    # Reversed, as the last entry for a label wins: its most frequent mistake.
    most = {label: (names[other], str(number)) for label, other, number in wrong[::-1].tolist()}
    # Classes without images get 1, which keeps them from being listed as the worst.
    shares = np.divide(right, totals, out=np.ones(len(names)), where=totals > 0)
    worst = np.argsort(shares, kind="stable")[:_MAX_ROWS].tolist()
    small = len(names) <= _MAX_IN_MATRIX
    return {
        "classes": [
            (
                names[label],
                str(totals[label]),
                f"{shares[label]:.2%}" if totals[label] else _NOTHING,
                *most.get(label, (_NOTHING, _NOTHING)),
            )
            for label in worst
        ],
        "matrix": _matrix(rows, names) if small else [],
        "names": list(names) if small else [],
        "pairs": []
        if small
        else [(names[i], names[j], str(n)) for i, j, n in wrong[:_MAX_ROWS].tolist()],
    }


def _matrix(rows: Rows, names: Sequence[str]) -> list[dict[str, Any]]:
    confusion = np.zeros((len(names), len(names)), np.int64)
    confusion[rows[:, 0], rows[:, 1]] = rows[:, 2]
    return [
        {
            "name": name,
            "cells": [
                {
                    "count": int(count),
                    "share": round(100 * count / max(1, confusion[label].sum())),
                    "right": label == other,
                }
                for other, count in enumerate(confusion[label])
            ],
        }
        for label, name in enumerate(names)
    ]


def _picture(mistake: MistakeRecord, names: Sequence[str]) -> dict[str, str]:
    return {
        "jpeg": mistake.jpeg,
        "label": names[mistake.label],
        "predicted": names[mistake.predicted],
        "confidence": f"{mistake.confidence:.2%}",
        "sample": mistake.sample,
    }


def _epochs(evaluations: Sequence[EvaluationEvent]) -> dict[str, Any]:
    """Return a row per evaluation, with top-5 accuracy if there are enough classes for it."""
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
