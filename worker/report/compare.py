"""Comparison of runs: their results, and the settings that differ."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.charts import duration, table
from worker.manifest.defaults import is_default
from worker.record.events import EvaluationEvent, StepEvent
from worker.report.read_run import Run

_NAMES = ("job", "output")
_NOTHING = "-"
_WIDEST = 32  # characters of a setting
_FEW_IMAGES = 10
_MARK = "★"
_BEST: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "best accuracy": max,
    "last accuracy": max,
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
    return Comparison(
        titles_of(runs),
        [(name, _results(name, [column[name] for column in columns])) for name in columns[0]],
        [
            (field, [_cut(shown_setting(run.settings.get(field))) for run in runs])
            for field in differing(runs)
        ],
    )


def _results(name: str, values: Sequence[Any]) -> list[str]:
    """Return each run's result as text, with the best one marked if they differ."""
    texts = [shown(name, value) for value in values]
    known = [value for value in values if value is not None]
    if name not in _BEST or len(set(known)) < 2:
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
    best = max(evaluations, key=lambda event: event.accuracy, default=None)
    last = evaluations[-1] if evaluations else None
    speeds = [event.images_per_second for event in steps]
    return {
        "state": run.status.state,
        "best accuracy": best.accuracy if best else None,
        "in epoch": best.epoch if best else None,
        "last accuracy": last.accuracy if last else None,
        "last loss": last.loss if last else None,
        "steps": max([run.status.step, *(event.step for event in steps)]),
        "time": run.history.seconds,
        "images/s": statistics.median(speeds) if speeds else None,
        "attempts": run.status.attempt,
        "bad samples": len(run.bad_samples),
    }


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
    if isinstance(value, list | tuple):
        return ", ".join(map(shown_setting, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
