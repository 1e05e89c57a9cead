"""Sparse confusion counts: with thousands of classes, few pairs ever occur.

Rows are int64 [n, 3]: true class, predicted class, image count; n is at most the number
of images.
"""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def merge_rows(parts: list[Rows]) -> Rows:
    """Merge rows, in which pairs may repeat, into one row per pair, sorted."""
    rows = np.concatenate(parts)
    pairs, inverse = np.unique(rows[:, :2], axis=0, return_inverse=True)
    counts = np.zeros(len(pairs), np.int64)
    # `counts[inverse] += …` would add only once per repeated index. NumPy 2.0 returns `inverse` as
    # [n, 1], other versions as [n].
    np.add.at(counts, inverse.reshape(-1), rows[:, 2])
    return np.concatenate([pairs, counts[:, None]], axis=1)


def by_class(rows: Rows, classes: int) -> npt.NDArray[np.int64]:
    """Return the numbers of images and of correct predictions by true class, [2, classes]."""
    found = np.zeros((2, classes), np.int64)
    np.add.at(found[0], rows[:, 0], rows[:, 2])
    right = rows[rows[:, 0] == rows[:, 1]]
    np.add.at(found[1], right[:, 0], right[:, 2])
    return found
