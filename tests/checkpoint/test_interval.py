"""The interval between checkpoints follows from what they cost and from how often attempts die."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from worker.checkpoint.interval import MIN_SECONDS, best_interval


@examples(200)
@given(st.floats(0, 1e4), st.floats(0.001, 0.5), st.none() | st.floats(1, 1e7))
def test_saving_costs_at_most_the_share_unless_attempts_die_often(
    cost: float, overhead: float, between: float | None
) -> None:
    interval = best_interval(cost, overhead, between)
    assert interval >= MIN_SECONDS
    if interval == MIN_SECONDS or not cost:
        return
    if between is None:
        assert cost / interval == pytest.approx(overhead)
        return

    def lost(seconds: float) -> float:
        """Share of the time lost to saving, and to half an interval for each failure."""
        return cost / seconds + seconds / 2 / between

    assert interval <= cost / overhead * (1 + 1e-9)
    # Nothing between the chosen and the allowed interval loses less.
    assert lost(interval) <= lost(math.sqrt(interval * cost / overhead)) * (1 + 1e-9)


def test_numbers_from_the_papers() -> None:
    assert best_interval(6, 0.03, None) == 200
    assert best_interval(6, 0.03, 1200) == pytest.approx(120)  # sqrt(2 x 6 x 1200)
    assert best_interval(6, 0.03, 100_000) == 200
    assert best_interval(0.01, 0.03, None) == MIN_SECONDS
