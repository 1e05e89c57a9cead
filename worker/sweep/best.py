"""The best trial of a sweep, with the interval of its mean over seeds and folds."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import JsonValue

from worker.judge.figure_text import METRIC_NAMES, metric_text
from worker.judge.intervals import mean_of
from worker.judge.measure import Measure, measure
from worker.logs import count
from worker.store.json_records import StoredRecord
from worker.sweep.halving import ranked
from worker.sweep.plan import Results, SweepPlan, Unit, rung_means, standing

# 97.5% quantiles of Student's t distribution with 1, 2, … degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960


class Best(StoredRecord):
    """The best trial."""

    trial: int
    settings: dict[str, JsonValue]
    figure: Measure
    """Its mean over all repetitions, or the figure of its only one, with a 95% interval."""
    outputs: tuple[str, ...]
    """The outputs of its jobs, relative to that of the sweep."""


def best_of(plan: SweepPlan, results: Results) -> Best | None:
    """Return the best trial of the last rung that has results; None if all have failed.

    Args:
        plan: The plan.
        results: The results of the finished units.
    """
    now = standing(plan, results)
    for rung in range(now.rung, -1, -1):
        trials = tuple(dict.fromkeys(unit.trial for unit in results if unit.rung == rung))
        order = ranked(rung_means(plan, results, rung, trials), plan.metric)
        if order:
            repeats = range(len(plan.repeats))
            return Best(
                trial=order[0],
                settings=dict(plan.trials[order[0]]),
                figure=figure_of(plan, results, Unit(rung, order[0], 0)),
                outputs=tuple(plan.job_output(order[0], repeat) for repeat in repeats),
            )
    return None


def figure_of(plan: SweepPlan, results: Results, first: Unit) -> Measure:
    """Return the mean of a trial over its repetitions at a rung, with its 95% interval.

    With several repetitions, it is Student's for the mean, which covers what differs between seeds
    and folds, or the one that follows from the intervals of the figures, whichever is wider: equal
    figures on few images are no certainty. With one, it is the figure's own.

    Args:
        plan: The plan.
        results: The results so far.
        first: The first unit of the trial at that rung.
    """
    found = [
        results[unit]
        for repeat in range(len(plan.repeats))
        if (unit := first._replace(repeat=repeat)) in results
    ]
    values = [one.value for one in found if one.value is not None]
    if len(values) < len(plan.repeats):
        return Measure()
    if len(values) == 1:
        return Measure(value=values[0], low=found[0].low, high=found[0].high)
    mean, half = mean_and_half(values)
    low, high = mean - half, mean + half
    if all(one.low is not None and one.high is not None for one in found):
        limits = np.array([(one.value, one.low, one.high) for one in found], np.float64)
        _, least, most = mean_of(*limits.T)
        low, high = min(low, least), max(high, most)
    if plan.metric != "loss":
        low, high = max(0.0, low), min(1.0, high)
    return measure(mean, low, high)


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of two or more values, and half of its 95% interval (Student's)."""
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    freedom = len(values) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else _NORMAL + 2.5 / freedom
    return mean, quantile * math.sqrt(spread / len(values))


def describe_best(plan: SweepPlan, best: Best, *, so_far: bool = False) -> str:
    """Return the best trial as a line of text.

    Args:
        plan: The plan.
        best: The best trial.
        so_far: Whether others may still turn out to be better.
    """
    settings = ", ".join(f"{path} {value}" for path, value in best.settings.items())
    over = f" over {count(len(plan.repeats), 'run')}" if len(plan.repeats) > 1 else ""
    figure = metric_text(plan.metric, best.figure)
    rank = "best so far" if so_far else "best"
    return (
        f"trial {best.trial} is {rank}, {METRIC_NAMES[plan.metric]} {figure}{over}"
        f"{': ' + settings if settings else ''}"
    )
