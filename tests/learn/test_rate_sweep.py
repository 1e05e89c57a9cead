"""What a sweep of rates suggests, and when it suggests nothing."""

import math
from random import Random

import numpy as np
import pytest

from worker.learn.rate_sweep import clipped, describe_sweep, make_sweep, noise_of

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


def test_a_loss_that_only_rises_is_drawn_as_such() -> None:
    rates = [10 ** (number / 10) for number in range(20)]
    sweep = make_sweep(rates, [1 + 0.1 * number for number in range(20)], diverged=False)
    drawn = clipped(sweep)
    assert drawn[0] == min(drawn) < drawn[-1]
    assert "▁" in describe_sweep(sweep, 1.0)
    assert "█" in describe_sweep(sweep, 1.0)


def test_noise_is_measured_beside_a_trend() -> None:
    chance = Random(0)
    losses = [5 - 0.01 * step + chance.gauss(0, 0.3) for step in range(400)]
    assert noise_of([*losses, 1e3, 1e6]) == pytest.approx(0.3, rel=0.15)


@pytest.mark.parametrize("count", [40, 100, 200])
def test_a_loss_that_only_rises_suggests_a_tenth_of_where_it_rises(count: int) -> None:
    """As after the head was trained: flat and noisy, and rising from 1e-2."""
    rates = [1e-6 * 1e5 ** (n / (count - 1)) for n in range(count)]
    found = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        rise = np.maximum(0, np.log10(rates) + 2) * 3
        losses = (0.5 + random.normal(0, 0.05, count) + rise).tolist()
        sweep = make_sweep(rates, losses, diverged=True)
        if sweep.suggestion is not None:
            assert sweep.suggestion >= rates[0]
            found.append(sweep.suggestion)
    assert len(found) > 190
    low, high = np.quantile(found, [0.05, 0.95])
    assert 3e-5 < low <= high < 1e-2
