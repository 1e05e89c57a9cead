"""Charts of a sweep: parallel coordinates of its trials, and the effect of each setting."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from worker.judge.figure_text import METRIC_NAMES
from worker.plots import COLORS, INK, MARK, draw_with
from worker.sweep.plan import SweepPlan
from worker.sweep.standings import TrialStanding

_WIDE, _SMALL = (12.4, 3.8), (6.0, 2.9)
_FEW = 5  # trials below which a rank correlation says nothing


def parallel(plan: SweepPlan, trials: Sequence[TrialStanding]) -> str:
    """Draw a line per trial through its settings to its figure; the best one stands out."""
    known = [one for one in trials if one.figure.value is not None]
    paths = [p for p in plan.manifest.vary if known and p in known[0].settings]
    axes_of = [*paths, METRIC_NAMES[plan.metric]]
    columns = [[one.settings[path] for one in known] for path in paths]
    columns.append([one.figure.value for one in known])
    logs = [plan.manifest.vary[path].log is not None for path in paths] + [False]
    places = [_places(c, log=log) for c, log in zip(columns, logs, strict=True)]

    def fill(axes: Axes) -> None:
        for row in range(len(known) - 1, -1, -1):  # the best last, on top
            ys = [place[row] for place in places]
            color, width = (MARK, 2.4) if row == 0 else (COLORS[0], 0.9)
            axes.plot(range(len(ys)), ys, color=color, linewidth=width, alpha=1 if not row else 0.6)
        for x, column in enumerate(columns):
            _label_axis(axes, x, column, places[x])
        axes.set_xticks(range(len(axes_of)), axes_of)
        axes.set_yticks([])
        axes.set_xlim(-0.35, len(axes_of) - 0.65)
        axes.set_ylim(-0.12, 1.12)
        axes.grid(visible=False)
        for x in range(len(axes_of)):
            axes.axvline(x, color=INK, linewidth=0.7)
        axes.set_title("settings and result of each trial")

    return draw_with(fill, _WIDE)


def effects(plan: SweepPlan, trials: Sequence[TrialStanding]) -> list[str]:
    """Draw the figure of all trials at the first rung over each setting."""
    known = [one for one in trials if one.first.value is not None]
    return [
        _effect(plan, path, known)
        for path in plan.manifest.vary
        if known and path in known[0].settings
    ]


def effect_rows(plan: SweepPlan, trials: Sequence[TrialStanding]) -> list[tuple[str, str]]:
    """Return what each setting does to the figure at the first rung, in words."""
    known = [one for one in trials if one.first.value is not None]
    rows = []
    for path, vary in plan.manifest.vary.items():
        if not known or path not in known[0].settings:
            continue
        values = [one.settings[path] for one in known]
        scores = [one.first.value or 0.0 for one in known]
        if vary.each:
            means = {str(v): _mean_where(values, scores, v) for v in vary.each if v in values}
            text = ", ".join(f"{value}: mean {mean:.4f}" for value, mean in means.items())
        elif len(known) < _FEW:
            text = "too few trials to tell"
        else:
            rho = _rank_correlation(values, scores)
            text = f"rank correlation {rho:+.2f} over {len(known)} trials"
        rows.append((path, text))
    return rows


def _effect(plan: SweepPlan, path: str, known: Sequence[TrialStanding]) -> str:
    vary = plan.manifest.vary[path]
    values = [one.settings[path] for one in known]
    scores = [one.first.value or 0.0 for one in known]

    def fill(axes: Axes) -> None:
        xs: Any = values
        if vary.each:
            names = [str(value) for value in vary.each]
            xs = [names.index(str(value)) for value in values]
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.scatter(xs, scores, s=22, color=COLORS[0], alpha=0.8)
        if vary.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(path)
        axes.set_title(f"{METRIC_NAMES[plan.metric]} at epoch {plan.rungs[0]}")

    return draw_with(fill, _SMALL)


def _places(values: Sequence[Any], *, log: bool) -> list[float]:
    """Return the height of each value on its axis, from 0 to 1."""
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        names = sorted({str(value) for value in values})
        numbers = [float(names.index(str(value))) for value in values]
    else:
        numbers = [math.log(value) if log else float(value) for value in values]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    return [(number - low) / (high - low) if high > low else 0.5 for number in numbers]


def _label_axis(axes: Axes, x: int, values: Sequence[Any], places: Sequence[float]) -> None:
    """Write the ends of an axis, or each value if these are names."""
    ends = {min(places, default=0.0), max(places, default=0.0)}
    names = not all(isinstance(value, int | float) for value in values)
    shown = dict(zip(places, values, strict=True))
    for place, value in shown.items():
        if names or place in ends:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            # Beside the axis, and clear of the lines that meet it.
            above = place > 0.5
            offset, side = (0.015, "bottom") if above else (-0.015, "top")
            axes.text(x + 0.015, place + offset, text, fontsize=8, va=side)


def _mean_where(values: Sequence[Any], scores: Sequence[float], wanted: Any) -> float:
    chosen = [s for v, s in zip(values, scores, strict=True) if v == wanted]
    return math.fsum(chosen) / len(chosen)


def _rank_correlation(values: Sequence[float], scores: Sequence[float]) -> float:
    """Return Spearman's rank correlation; 0 if all scores are equal."""
    ranks = [_ranks(np.asarray(each, np.float64)) for each in (values, scores)]
    if ranks[0].std() == 0 or ranks[1].std() == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Any:
    """Return the rank of each value; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
