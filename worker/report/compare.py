"""Comparison of runs: their results, and the settings that differ."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.charts import duration, table
from worker.judge.figure_text import METRIC_NAMES, metric_text
from worker.judge.judgment import score_of
from worker.judge.paired import compare_outcomes
from worker.manifest.defaults import is_default
from worker.record.events import EvaluationEvent, StepEvent
from worker.report.read_run import Run
from worker.report.run_facts import cost_text

_NAMES = ("job", "output")
_NOTHING = "-"
_WIDEST = 32  # characters of a setting
_FEW_IMAGES = 10
_MARK = "★"
_BEST: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "final accuracy": max,
    "last loss": min,
    "images/s": max,
}
"""Functions that pick the best value, by name of result."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, a column per run."""

    titles: list[str]
    """Names of the runs."""
    results: list[tuple[str, list[str]]]
    """Rows, each with the name of a result and a text per run."""
    settings: list[tuple[str, list[str]]]
    """The settings that differ, in the same form."""

    def __str__(self) -> str:
        rows = [("", *self.titles), *((name, *texts) for name, texts in self.results)]
        if not self.settings and len(self.titles) > 1:
            return "\n".join([*table(rows), "all settings are equal"])
        rows += [("", *("" for _ in self.titles))]
        rows += [(name, *texts) for name, texts in self.settings]
        return "\n".join(table(rows))


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Compare runs: results first, then the settings that differ."""
    columns = [results_of(run) for run in runs]
    # A star among accuracies on different images would be no comparison.
    comparable = len({_identity(run) for run in runs}) == 1
    # Images whose features are cached are not read again, so their speed is no comparison either.
    probed = any(run.settings.get("train.cache_features") for run in runs)
    rows = []
    for name in columns[0]:
        stars = not probed if name.startswith("images") else comparable
        rows.append((name, _results(name, [column[name] for column in columns], stars=stars)))
    return Comparison(
        titles_of(runs),
        rows + _paired_row(runs, comparable=comparable),
        [
            (field, [_cut(shown_setting(run.settings.get(field))) for run in runs])
            for field in differing(runs)
        ],
    )


def _identity(run: Run) -> str:
    return run.plan.val.identity if run.plan.val else ""


def _paired_row(runs: Sequence[Run], *, comparable: bool) -> list[tuple[str, list[str]]]:
    """Return a row that compares each run with the best one, image by image."""
    shown = [run.validation for run in runs]
    if not any(shown):
        return []
    if not comparable:
        return [("same images", ["no: other validation set" for _ in runs])]
    scores = [one.judgment.accuracy.value or 0.0 if one else -1.0 for one in shown]
    best = shown[scores.index(max(scores))]
    texts = []
    for one in shown:
        if one is best:
            texts.append("best")
        elif one is None or best is None or len(one.outcomes) != len(best.outcomes):
            texts.append(_NOTHING)
        else:
            texts.append(str(compare_outcomes(best.outcomes, one.outcomes)))
    return [("images only one gets right (best : this)", texts)]


def _results(name: str, values: Sequence[Any], *, stars: bool) -> list[str]:
    """Return each run's result as text, with the best one marked if they differ."""
    texts = [shown(name, value) for value in values]
    known = [value for value in values if value is not None]
    if name not in _BEST or len(set(known)) < 2 or not stars:
        return texts
    best = _BEST[name](known)
    return [
        f"{text} {_MARK}" if value == best else text
        for text, value in zip(texts, values, strict=True)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"…{text[-_WIDEST:]}"  # addresses differ at the end


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the manifest fields that are not the same in all runs.

    A field that only some runs have does not count if its value in all of these is the default.
    """
    fields = dict.fromkeys(field for run in runs for field in run.settings)
    return [
        field
        for field in fields
        if field not in _NAMES
        # As text, since lists are not hashable.
        and len({str(run.settings.get(field)) for run in runs}) > 1
        and not all(is_default(field, run.settings[field]) for run in runs if field in run.settings)
    ]


def results_of(run: Run) -> dict[str, Any]:
    """Return the results of a run, by name."""
    evaluations, steps = run.history.of(EvaluationEvent), run.history.of(StepEvent)
    best = best_evaluation(evaluations)
    last = evaluations[-1] if evaluations else None
    speeds = [event.images_per_second for event in steps]
    return {
        "state": run.status.state,
        "best accuracy": best.accuracy if best else None,
        "in epoch": best.epoch if best else None,
        "last accuracy": last.accuracy if last else None,
        "last loss": last.loss if last else None,
        "final accuracy": _final_accuracy(run),
        "final metric": _figure(run, "validation"),
        "test metric": _figure(run, "test"),
        "steps": max([run.status.step, *(event.step for event in steps)]),
        "time": run.history.seconds,
        "images/s": statistics.median(speeds) if speeds else None,
        "attempts": run.status.attempt,
        "bad samples": len(run.bad_samples),
        "cost": cost_text(run) or None,
    }


def _final_accuracy(run: Run) -> float | None:
    """Return the validation accuracy of the weights in `final/`, or of the last evaluation."""
    return run.validation.judgment.accuracy.value if run.validation else None


def _figure(run: Run, split: str) -> str | None:
    """Return the metric of these weights on a data set, with its interval, as text."""
    shown = getattr(run, split)
    best = best_evaluation(run.history.of(EvaluationEvent))
    if best is None or shown is None:
        return None
    figure = shown.judgment.metric(best.metric)
    return f"{METRIC_NAMES[best.metric]} {metric_text(best.metric, figure)}"


def best_evaluation(evaluations: Sequence[EvaluationEvent]) -> EvaluationEvent | None:
    """Return the evaluation with the best value of its metric, the first if several are equal."""
    known = [event for event in evaluations if event.value is not None]
    return max(known, key=lambda event: score_of(event.value, event.metric) or 0.0, default=None)


def titles_of(runs: Sequence[Run]) -> list[str]:
    """Return the job names; if they are not distinct, the last part of each output's address."""
    names = [run.status.job for run in runs]
    if len(set(names)) == len(names):
        return names
    return [run.status.run.rstrip("/").rpartition("/")[2] for run in runs]


def shown(name: str, value: Any) -> str:
    """Format a result for display."""
    if value is None:
        return _NOTHING
    if name == "time":
        return duration(value)
    if name == "images/s":
        return f"{value:.1f}" if value < _FEW_IMAGES else f"{value:,.0f}"
    if "accuracy" in name:
        return f"{value:.2%}"
    return f"{value:.4f}" if "loss" in name else str(value)


def shown_setting(value: Any) -> str:
    """Format a setting much as the manifest writes it."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown_setting(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(shown_setting, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
