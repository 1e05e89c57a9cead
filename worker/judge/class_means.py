"""Means over classes of precision and F1, with intervals by the delta method.

The variance is that of the figure's influence function over the images (Takahashi et al., 2022,
"Confidence interval for micro-averaged F1 and macro-averaged F1 scores"). It accounts for a mistake
that counts against two classes at once.
"""

import numpy as np

from worker.judge.confusion import Rows
from worker.judge.intervals import Floats, around
from worker.judge.measure import Measure, measure


def class_means(rows: Rows, classes: int) -> dict[str, Measure]:
    """Return macro and weighted precision and F1, by name.

    Args:
        rows: The confusion counts.
        classes: The number of classes. Those without images are left out of the means.
    """
    images = rows[:, 2].sum()
    names = ("macro_precision", "weighted_precision", "macro_f1", "weighted_f1")
    if not images:
        return dict.fromkeys(names, Measure())
    true, guess = rows[:, 0], rows[:, 1]
    share = rows[:, 2] / images  # of the images, by row
    hit = true == guess
    of_class, of_guess = np.zeros(classes), np.zeros(classes)
    np.add.at(of_class, true, share)
    np.add.at(of_guess, guess, share)
    hits = np.zeros(classes)
    np.add.at(hits, true[hit], share[hit])
    present = of_class > 0
    equal = present / present.sum()
    none = np.zeros(classes)
    either = of_class + of_guess
    precision = np.divide(hits, of_guess, out=none.copy(), where=of_guess > 0)
    f1 = np.divide(2 * hits, either, out=none.copy(), where=either > 0)
    per_guess = np.divide(1, of_guess, out=none.copy(), where=of_guess > 0)
    per_either = np.divide(1, either, out=none.copy(), where=either > 0)
    found = {}
    for name, weights in (("macro", equal), ("weighted", of_class)):
        # What one more image of a row would change in each mean, up to a constant.
        moves = weights[guess] * per_guess[guess] * (hit - precision[guess])
        moves_f1 = 2 * hit * weights[true] * per_either[true]
        for side in (true, guess):
            moves_f1 -= weights[side] * f1[side] * per_either[side]
        if name == "weighted":  # it also changes the weight of its class
            moves, moves_f1 = moves + precision[true], moves_f1 + f1[true]
        found[f"{name}_precision"] = _measure(float(weights @ precision), moves, share, images)
        found[f"{name}_f1"] = _measure(float(weights @ f1), moves_f1, share, images)
    return found


def _measure(value: float, moves: Floats, share: Floats, images: int) -> Measure:
    variance = max(0.0, float(share @ moves**2 - (share @ moves) ** 2)) / images
    one = np.array([value])
    low, high = around(one, np.array([variance if variance > 1e-18 else 0.0]), np.array([images]))
    return measure(value, min(value, float(low[0])), max(value, float(high[0])))
