"""McNemar's exact test is scipy's binomial test on the images on which two models differ."""

import numpy as np
import pytest
from scipy.stats import binomtest

from worker.judge.paired import RIGHT, UNSEEN, WRONG, compare_outcomes


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 9), (1, 0), (40, 22), (900, 1000), (5, 5)])
def test_the_p_value(a: int, b: int) -> None:
    first = np.array([RIGHT] * a + [WRONG] * b + [RIGHT, WRONG, UNSEEN, RIGHT], np.uint8)
    second = np.array([WRONG] * a + [RIGHT] * b + [RIGHT, WRONG, RIGHT, UNSEEN], np.uint8)
    found = compare_outcomes(first, second)
    assert (found.only_first, found.only_second) == (a, b)
    expected = binomtest(a, a + b).pvalue if a + b else 1.0
    assert found.p == pytest.approx(expected, rel=1e-6)
    assert ("could be chance" in str(found)) == (expected >= 0.05)
