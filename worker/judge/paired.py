"""Comparison of two models on the same images, by McNemar's exact test (1947)."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNSEEN, WRONG, RIGHT = 0, 1, 2
Outcomes = npt.NDArray[np.uint8]
"""[samples]: for each sample id, `RIGHT`, `WRONG`, or `UNSEEN` if the sample could not be used."""

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class PairedTest:
    """The images on which only one of two models is right, and what chance has to do with it."""

    only_first: int
    """Images that only the first model gets right."""
    only_second: int
    """Images that only the second model gets right."""
    p: float
    """How likely equally good models differ at least as much."""

    def __str__(self) -> str:
        verdict = "more than chance" if self.p < _SIGNIFICANT else "could be chance"
        return f"{self.only_first} : {self.only_second} images, p = {self.p:.2g}, {verdict}"


def compare_outcomes(first: Outcomes, second: Outcomes) -> PairedTest:
    """Compare two models on the images that both of them were evaluated on."""
    both = (first != UNSEEN) & (second != UNSEEN)
    only_first = int(((first == RIGHT) & (second == WRONG) & both).sum())
    only_second = int(((first == WRONG) & (second == RIGHT) & both).sum())
    return PairedTest(only_first, only_second, _p_value(only_first, only_second))


def _p_value(a: int, b: int) -> float:
    """Return the two-sided p-value of `a` against `b` under a fair coin."""
    n = a + b
    if not n:
        return 1.0
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        for k in range(min(a, b) + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
