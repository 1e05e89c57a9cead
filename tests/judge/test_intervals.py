"""Of the 95 % intervals, 95 % hold the true value."""

import numpy as np
import pytest

from worker.judge.class_means import class_means
from worker.judge.intervals import calibration_error, f1_of, mean_of, wilson
from worker.judge.ranking import auroc

SETS = 600


def drawn(shares: np.ndarray, images: int, seed: int) -> list[np.ndarray]:
    """Confusion counts of many sets that are drawn from these shares."""
    rng = np.random.default_rng(seed)
    classes = len(shares)
    found = []
    for counts in rng.multinomial(images, shares.ravel(), SETS):
        matrix = counts.reshape(classes, classes)
        found.append(np.array([(i, j, matrix[i, j]) for i, j in np.argwhere(matrix > 0).tolist()]))
    return found


def confusion(classes: int, accuracy: float) -> np.ndarray:
    shares = np.full((classes, classes), (1 - accuracy) / (classes - 1) / classes)
    np.fill_diagonal(shares, accuracy / classes)
    return shares


@pytest.mark.parametrize(("classes", "accuracy", "images"), [(2, 0.9, 153), (6, 0.8, 300)])
def test_means_over_classes(classes: int, accuracy: float, images: int) -> None:
    # Classes are alike, so each of the four means has the accuracy as its true value.
    sets = drawn(confusion(classes, accuracy), images, seed=classes)
    for name in ("macro_precision", "weighted_precision", "macro_f1", "weighted_f1"):
        figures = [class_means(rows, classes)[name] for rows in sets]
        held = sum((f.low or 0) <= accuracy <= (f.high or 1) for f in figures)
        assert 0.92 < held / SETS < 0.98, name


def test_shares_f1_and_balanced_accuracy() -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(50, [[0.9, 0.6, 0.8]], (SETS, 3))
    _, low, high = wilson(hits, 50)
    assert 0.92 < ((low[:, 0] <= 0.9) & (high[:, 0] >= 0.9)).mean() < 0.98
    means = [mean_of(*wilson(row, 50)) for row in hits]
    held = np.mean([low <= (0.9 + 0.6 + 0.8) / 3 <= high for _, low, high in means])
    assert 0.92 < held < 0.98
    _, low, high = f1_of(rng.binomial(80, 0.7, SETS), 80)
    f1 = 2 * 0.7 / 1.7
    assert 0.92 < ((low <= f1) & (high >= f1)).mean() < 0.98


def test_areas_under_the_curve() -> None:
    rng = np.random.default_rng(1)
    positives, negatives = rng.normal(1, 1, (SETS, 60)), rng.normal(0, 1, (SETS, 90))
    histograms = np.zeros((SETS, 2, 400), np.int64)
    for kind, scores in enumerate((negatives, positives)):
        bins = np.clip((scores + 6) * 30, 0, 399).astype(int)
        np.add.at(histograms[:, kind], (np.arange(SETS)[:, None], bins), 1)
    _, low, high = auroc(histograms)
    area = 0.7602  # of two unit normals, one apart: the normal distribution at 1 / sqrt(2)
    assert 0.91 < ((low <= area) & (high >= area)).mean() < 0.985


def test_an_honest_model_has_a_small_calibration_error() -> None:
    rng = np.random.default_rng(2)
    images = np.full(15, 400)
    confidence = (np.arange(15) + 0.5) / 15
    counts = np.stack([images, rng.binomial(images, confidence)], axis=1)
    honest = calibration_error(counts, images * confidence)
    assert (honest.value or 1) < 0.03
    proud = calibration_error(counts, images * np.minimum(1, confidence + 0.2))
    assert (proud.low or 0) > (honest.high or 1)
