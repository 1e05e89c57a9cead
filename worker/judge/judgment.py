"""Every figure about a model on a set of labeled images, each with its 95% interval."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from worker.judge.class_means import class_means
from worker.judge.confusion import by_class
from worker.judge.intervals import (
    Floats,
    calibration_error,
    f1_of,
    mean_of,
    mean_of_dependent,
    mean_of_sums,
    wilson,
)
from worker.judge.measure import Measure, measure
from worker.judge.ranking import auroc, average_precision
from worker.judge.tally import TOP, Tally
from worker.manifest.training import Metric
from worker.store.json_records import StoredRecord

_Count = Annotated[int, Field(ge=0)]


class ClassJudgment(StoredRecord):
    """The figures of one class."""

    name: str
    support: _Count
    """Images of this class."""
    predicted: _Count
    """Images predicted to be of this class."""
    precision: Measure
    recall: Measure
    f1: Measure
    average_precision: Measure
    auroc: Measure


class ReliabilityBin(StoredRecord):
    """The images whose highest probability is in one of 15 equal ranges."""

    images: _Count
    confidence: float | None
    """Mean of that probability."""
    accuracy: Measure


class Judgment(StoredRecord):
    """The figures of a model on a set of images."""

    images: _Count
    not_finite: _Count
    """Images whose prediction was not finite; they are counted nowhere else."""
    score_bins: _Count
    """Bins of the log-odds within which scores count as equal; see `worker.judge.tally`."""
    accuracy: Measure
    top5_accuracy: Measure
    balanced_accuracy: Measure
    """Mean of the recalls of the classes that have images."""
    macro_precision: Measure
    macro_recall: Measure
    macro_f1: Measure
    weighted_precision: Measure
    weighted_recall: Measure
    weighted_f1: Measure
    macro_average_precision: Measure
    macro_auroc: Measure
    log_loss: Measure
    brier: Measure
    calibration_error: Measure
    reliability: tuple[ReliabilityBin, ...]
    classes: tuple[ClassJudgment, ...]

    def metric(self, name: Metric) -> Measure:
        """Return the figure that `train.metric` names."""
        found: Measure = getattr(self, "log_loss" if name == "loss" else name)
        return found


def score_of(value: float | None, name: Metric) -> float | None:
    """Return a figure such that higher is better."""
    return None if value is None else -value if name == "loss" else value


def judge(tally: Tally, names: Sequence[str]) -> Judgment:
    """Compute every figure.

    Precision of a class that is never predicted counts as 0, and so does F1, as in scikit-learn.
    Means over classes leave out those without images.

    Args:
        tally: The sums over the images.
        names: Names of the classes, in label order.
    """
    rows, images = tally.rows, tally.images
    totals, hits = by_class(rows, len(names))
    predicted = np.zeros(len(names), np.int64)
    np.add.at(predicted, rows[:, 1], rows[:, 2])
    figures = {
        "precision": wilson(hits, predicted),
        "recall": wilson(hits, totals),
        "f1": f1_of(hits, totals + predicted - hits),
        "average_precision": average_precision(tally.histograms),
        "auroc": auroc(tally.histograms),
    }
    accuracy = _one(wilson(hits.sum(), images))
    return Judgment(
        images=images,
        not_finite=tally.not_finite,
        score_bins=tally.histograms.shape[2],
        accuracy=accuracy,
        top5_accuracy=_one(wilson(tally.top5_hits, images)) if len(names) > TOP else Measure(),
        balanced_accuracy=measure(*mean_of(*figures["recall"])),
        **class_means(rows, len(names)),
        weighted_recall=accuracy,
        macro_recall=measure(*mean_of(*figures["recall"])),
        macro_average_precision=measure(*mean_of_dependent(*figures["average_precision"])),
        macro_auroc=measure(*mean_of_dependent(*figures["auroc"])),
        log_loss=measure(*mean_of_sums(*tally.log_losses, images)),
        brier=measure(*mean_of_sums(*tally.brier_scores, images)),
        calibration_error=calibration_error(tally.reliability[:, :2], tally.confidences),
        reliability=_reliability(tally),
        classes=tuple(
            ClassJudgment(
                name=name,
                support=int(totals[label]),
                predicted=int(predicted[label]),
                **{key: _at(parts, label) for key, parts in figures.items()},
            )
            for label, name in enumerate(names)
        ),
    )


def _reliability(tally: Tally) -> tuple[ReliabilityBin, ...]:
    counts, confidences = tally.reliability, tally.confidences
    shares = wilson(counts[:, 1], counts[:, 0])
    return tuple(
        ReliabilityBin(
            images=int(n),
            confidence=float(confidences[index] / n) if n else None,
            accuracy=_at(shares, index),
        )
        for index, n in enumerate(counts[:, 0])
    )


def _one(parts: Sequence[Floats]) -> Measure:
    return measure(float(parts[0]), float(parts[1]), float(parts[2]))


def _at(parts: Sequence[Floats], index: int) -> Measure:
    return measure(float(parts[0][index]), float(parts[1][index]), float(parts[2][index]))
