"""What a sweep of rates suggests, and when it suggests nothing."""

import math
from random import Random

import pytest

from worker.learn.rate_sweep import make_sweep, noise_of

RATES = [10 ** (-6 + 5 * step / 99) for step in range(100)]


@pytest.mark.parametrize("count", [20, 40, 100])
def test_noise_suggests_nothing(count: int) -> None:
    """Of sweeps at rates that change nothing, with batches that differ by a fifth."""
    chance = Random(0)
    suggestions = [
        make_sweep(
            RATES[:count],
            [0.7 * math.exp(chance.gauss(0, 0.2)) for _ in range(count)],
            diverged=False,
        ).suggestion
        for _ in range(50)
    ]
    assert sum(map(bool, suggestions)) <= 2


@pytest.mark.parametrize("seed", range(20))
def test_a_fall_is_found_in_noise(seed: int) -> None:
    """Of a loss that falls to a third between 1e-4 and 1e-2, and diverges at last."""
    chance = Random(seed)
    shares = [1 / (1 + math.exp(-4 * (math.log10(rate) + 3))) for rate in RATES]
    losses = [2.0 * (1 - 2 / 3 * share) + chance.gauss(0, 0.1) for share in shares]
    losses[-8:] = [2.0**n for n in range(8)]
    suggestion = make_sweep(RATES, losses, diverged=True).suggestion
    assert suggestion and 1e-5 < suggestion < 1e-1


def test_noise_is_measured_beside_a_trend() -> None:
    chance = Random(0)
    losses = [5 - 0.01 * step + chance.gauss(0, 0.3) for step in range(400)]
    assert noise_of([*losses, 1e3, 1e6]) == pytest.approx(0.3, rel=0.15)
