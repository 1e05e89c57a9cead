"""Runs side by side: what was set differently, and what came of it."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from worker.charts import table
from worker.errors import ConfigurationError
from worker.store import ObjectMissing, Store, open_store
from worker.train.changes import flat
from worker.train.history import read_history
from worker.train.progress import duration

_NAMES = ("job", "output")
_NOTHING = "-"
_WIDEST = 32

Column = dict[str, Any]


def read_runs(addresses: Sequence[str]) -> list[Column]:
    """A column per run: `settings` by manifest field, and `result`.

    Raises `ConfigurationError` for an address that holds no run.
    """
    return [_read_run(open_store(address)) for address in addresses]


def differing(runs: Sequence[Column]) -> list[str]:
    """The manifest fields that are not the same in all runs."""
    fields = dict.fromkeys(field for run in runs for field in run["settings"])
    return [
        field
        for field in fields
        if field not in _NAMES and len({str(run["settings"].get(field)) for run in runs}) > 1
    ]


def describe_runs(runs: Sequence[Column]) -> str:
    """A row per run property: results first, then the settings that differ."""
    rows = [("", *_titles(runs))]
    for name in runs[0]["result"]:
        rows.append((name, *(_shown(name, run["result"][name]) for run in runs)))
    fields = differing(runs)
    rows.append(("", *("" for _ in runs)))
    for field in fields:
        rows.append((field, *(_shown(field, run["settings"].get(field)) for run in runs)))
    lines = table(rows)
    return "\n".join(lines if fields else [*lines, "all settings are equal"])


def _titles(runs: Sequence[Column]) -> list[str]:
    """The jobs' names or, where they are not distinct, the ends of the outputs' addresses."""
    names = [run["run"] for run in runs]
    if len(set(names)) == len(names):
        return names
    return [run["output"].rstrip("/").rpartition("/")[2] for run in runs]


def _read_run(store: Store) -> Column:
    try:
        settings = flat(json.loads(store.get("manifest.json")))
    except ObjectMissing:
        raise ConfigurationError(
            f"{store.uri}: holds no run; give the output of a job that was started"
        ) from None
    history = read_history(store)
    evaluations, steps = history.of("evaluation"), history.of("step")
    accuracies = [event["accuracy"] for event in evaluations]
    best = max(evaluations, key=lambda event: event["accuracy"], default=None)
    speeds = [event["images_per_second"] for event in steps]
    last = steps[-1]["step"] if steps else 0
    return {
        "run": settings["job"],
        "output": store.uri,
        "settings": settings,
        "result": {
            "state": "done" if history.of("done") else f"at step {last}",
            "best accuracy": best["accuracy"] if best else None,
            "in epoch": best["epoch"] if best else None,
            "last accuracy": accuracies[-1] if accuracies else None,
            "last loss": evaluations[-1]["loss"] if evaluations else None,
            "steps": last,
            "time": history.seconds,
            "images/s": statistics.median(speeds) if speeds else None,
            "attempts": history.attempts,
        },
    }


def _shown(name: str, value: Any) -> str:
    if value is None:
        return _NOTHING
    if name == "time":
        return duration(value)
    if "accuracy" in name or name == "last loss":
        return f"{value:.4f}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST else f"…{text[-_WIDEST:]}"
