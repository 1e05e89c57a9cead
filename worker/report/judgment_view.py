"""An evaluation as a page shows it: figures, classes, confusion, charts and pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from worker.judge.confusion import Rows
from worker.judge.figure_text import number_text, share_text
from worker.judge.judgment import Judgment
from worker.judge.thresholds import Threshold
from worker.report.judgment_charts import precision_recall_chart, reliability_chart
from worker.report.read_evaluation import ShownEvaluation
from worker.report.record_schemas import PickRecord

_MAX_IN_MATRIX = 20
_MAX_ROWS = 20
_NOTHING = "-"

FIGURES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_average_precision": "macro average precision",
    "macro_auroc": "macro AUROC",
    "calibration_error": "calibration error",
    "log_loss": "log loss",
    "brier": "Brier score",
}


def figure_rows(columns: Sequence[Judgment | None]) -> list[tuple[str, ...]]:
    """Return the overall figures, a row each, with a column per judgment."""
    rows = []
    for field, name in FIGURES.items():
        text = number_text if field in ("log_loss", "brier") else share_text
        cells = [text(getattr(one, field)) if one else _NOTHING for one in columns]
        if any(cell != _NOTHING for cell in cells):
            rows.append((name, *cells))
    return rows


def evaluation_view(
    shown: ShownEvaluation, names: Sequence[str], thresholds: Sequence[Threshold] = ()
) -> dict[str, Any]:
    """Return everything that the template `judgment.html` needs.

    Args:
        shown: The evaluation.
        names: Names of the classes, in label order.
        thresholds: The thresholds of the classes, if there are any.
    """
    judgment, rows = shown.judgment, shown.tally.rows
    wrong = rows[rows[:, 0] != rows[:, 1]]
    wrong = wrong[np.argsort(-wrong[:, 2], kind="stable")]
    small = len(names) <= _MAX_IN_MATRIX
    charts = [reliability_chart(judgment), precision_recall_chart(shown.tally, judgment)]
    pictures = shown.pictures
    labels = {
        label
        for picks in (pictures.wrong, pictures.unsure, pictures.suspects)
        for pick in picks
        for label in (pick.label, pick.predicted)
    }
    return {
        "images": judgment.images,
        "pictured": [(label, names[label]) for label in sorted(labels)],
        "step": shown.step,
        "class_names": list(names),
        "classes": _class_rows(judgment, wrong, thresholds),
        "class_head": _CLASS_HEAD + (["threshold"] if thresholds else []),
        "matrix": _matrix(rows, names) if small else [],
        "pairs": []
        if small
        else [(names[i], names[j], str(n)) for i, j, n in wrong[:_MAX_ROWS].tolist()],
        "charts": [Markup(chart) for chart in charts],  # noqa: S704 -- names in them are escaped
        "wrong": [_picture(pick, names) for pick in pictures.wrong],
        "unsure": [_picture(pick, names) for pick in pictures.unsure],
        "suspects": [_picture(pick, names) for pick in pictures.suspects],
    }


_CLASS_HEAD = ["class", "images", "precision", "recall", "F1", "AUROC", "most often taken for"]


def _class_rows(
    judgment: Judgment, wrong: Rows, thresholds: Sequence[Threshold]
) -> list[tuple[str, ...]]:
    """Return the classes with the lowest F1, worst first."""
    classes = judgment.classes
    # Reversed, as the last entry for a label wins: its most frequent mistake.
    most = {label: f"{classes[other].name} ({n})" for label, other, n in wrong[::-1].tolist()}
    found = sorted(
        (label for label, one in enumerate(classes) if one.support),
        key=lambda label: classes[label].f1.value or 0.0,
    )
    rows = []
    for label in found[:_MAX_ROWS]:
        one = classes[label]
        figures = (one.precision, one.recall, one.f1, one.auroc)
        row = [one.name, str(one.support), *map(share_text, figures), most.get(label, _NOTHING)]
        if thresholds:
            probability = thresholds[label].probability
            row.append(_NOTHING if probability is None else f"{probability:.4f}")
        rows.append(tuple(row))
    return rows


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


def _picture(pick: PickRecord, names: Sequence[str]) -> dict[str, str]:
    return {
        "jpeg": pick.jpeg,
        "label": names[pick.label],
        "predicted": names[pick.predicted],
        "confidence": f"{pick.confidence:.2%}",
        "sample": pick.sample,
        "of": f"{pick.label} {pick.predicted}",  # what the page filters by
    }
