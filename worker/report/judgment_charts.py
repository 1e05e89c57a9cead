"""Charts of a judgment: reliability, and precision over recall by class."""

import numpy as np

from worker.judge.judgment import Judgment
from worker.judge.ranking import at_least
from worker.judge.tally import Tally
from worker.plots import Chart, Line, draw

_MAX_CURVES = 8
_POINTS = 101


def reliability_chart(judgment: Judgment) -> str:
    """Draw the accuracy over the confidence of the predictions, with its intervals."""
    bins = [part for part in judgment.reliability if part.images and part.confidence is not None]
    x = [part.confidence or 0.0 for part in bins]
    values, low, high = (
        [getattr(part.accuracy, name) for part in bins] for name in ("value", "low", "high")
    )
    return draw(
        Chart(
            title="reliability",
            x_label="confidence; an honest model lies on the diagonal",
            lines=[
                Line(name="accuracy", x=x, y=values, dots=True),
                Line(name="95% interval", x=x, y=low, color=7),
                Line(name="", x=x, y=high, color=7),
                Line(name="honest", x=[0, 1], y=[0, 1], color=6),
            ],
            y_range=(0, 1.02),
            percent=True,
        )
    )


def precision_recall_chart(tally: Tally, judgment: Judgment) -> str:
    """Draw precision over recall, at every threshold, of the classes with the lowest F1."""
    hits, alarms = at_least(tally.histograms)
    order = sorted(
        (n for n, one in enumerate(judgment.classes) if one.support),
        key=lambda n: judgment.classes[n].f1.value or 0.0,
    )[:_MAX_CURVES]
    lines = []
    for color, label in enumerate(order):
        found = np.flatnonzero(np.diff(hits[label] + alarms[label], append=0))
        # Ascending in recall, and thinned out to what a chart can show.
        places = found[::-1][:: max(1, len(found) // _POINTS)]
        recall = hits[label, places] / hits[label, 0]
        precision = hits[label, places] / (hits[label, places] + alarms[label, places])
        lines.append(
            Line(
                name=judgment.classes[label].name,
                x=recall.tolist(),
                y=precision.tolist(),
                color=color,
            )
        )
    return draw(
        Chart(
            title="precision by recall" + (", worst classes" if len(order) == _MAX_CURVES else ""),
            x_label="recall",
            lines=lines,
            y_range=(0, 1.02),
            percent=True,
        )
    )
