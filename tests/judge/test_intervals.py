"""95% intervals hold the true value in 95% of all cases."""

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


@pytest.mark.parametrize("positives", [1, 3, 60])
def test_areas_under_the_curve(positives: int) -> None:
    """Also of rare classes, whose few images say little about how much the area varies."""
    rng = np.random.default_rng(1)
    scores = rng.normal(1, 1, (SETS, positives)), rng.normal(0, 1, (SETS, 90))
    histograms = np.zeros((SETS, 2, 400), np.int64)
    for kind, of_kind in enumerate(reversed(scores)):
        bins = np.clip((of_kind + 6) * 30, 0, 399).astype(int)
        np.add.at(histograms[:, kind], (np.arange(SETS)[:, None], bins), 1)
    _, low, high = auroc(histograms)
    area = 0.7602  # of two unit normals, one apart: the normal distribution at 1 / sqrt(2)
    held = ((low <= area) & (high >= area)).mean()
    assert held > 0.91
    assert held < 0.985 or positives < 10


@pytest.mark.parametrize("images", [30, 150, 2000])
def test_the_calibration_error_of_an_honest_and_of_a_proud_model(images: int) -> None:
    """Whether it is honest or not, its error lies in the interval, even if few images tell."""
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.linspace(0.2, 4, 15))
    confidence = (np.arange(15) + 0.5) / 15
    for pride in (0.0, 0.1):
        accuracy = np.maximum(0, confidence - pride)
        error = float(shares @ np.abs(accuracy - confidence))
        held = 0
        for counts in rng.multinomial(images, shares, 200):
            hits = rng.binomial(counts, accuracy)
            found = calibration_error(np.stack([counts, hits], axis=1), counts * confidence)
            held += (found.low or 0) - 1e-9 <= error <= (found.high or 0) + 1e-9
        assert held > 0.85 * 200, (pride, held)
