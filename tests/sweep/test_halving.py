"""Halving and the plan: pure functions, so that all workers agree on what is left to do."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from worker.manifest.load import check_section
from worker.sweep.best import best_of, describe_best, figure_of, mean_and_half
from worker.sweep.halving import mean_of, ranked, rung_epochs, rung_sizes, survivors
from worker.sweep.manifest import First, Halving, SweepManifest
from worker.sweep.plan import SweepPlan, Unit, UnitResult, standing
from worker.sweep.standings import standings


def halving(epochs: int = 1, keep: float = 0.5) -> Halving:
    return Halving(first=First(epochs=epochs), keep=keep)


def test_rungs_grow_by_the_inverse_of_what_is_kept() -> None:
    assert rung_epochs(8, halving()) == (1, 2, 4, 8)
    assert rung_epochs(9, halving(1, 1 / 3)) == (1, 3, 9)
    assert rung_epochs(6, halving(2)) == (2, 4, 6)
    assert rung_epochs(3, halving(1, 0.9)) == (1, 2, 3)
    assert rung_epochs(3, halving(5)) == rung_epochs(3, None) == (3,)
    assert rung_sizes(12, 4, halving()) == (12, 6, 3, 2)
    assert rung_sizes(3, 4, halving(keep=0.1)) == (3, 1, 1, 1)
    assert rung_sizes(5, 1, None) == (5,)


def test_the_better_half_survives() -> None:
    means = {0: 0.5, 1: 0.9, 2: None, 3: 0.5, 4: 0.7}
    assert ranked(means, "accuracy") == (1, 4, 0, 3)
    assert survivors(means, "accuracy", halving()) == (0, 1, 4)
    assert survivors(means, "loss", halving()) == (0, 3, 4)
    assert survivors({0: None, 1: None}, "accuracy", halving()) == ()
    assert mean_of([0.5, None]) is None
    assert mean_of([0.5, 0.6]) == pytest.approx(0.55)


def plan_of(trials: int, repeats: int, keep: float, metric: str = "accuracy") -> SweepPlan:
    goal = {"min": "loss"} if metric == "loss" else {"max": metric}
    vary: dict[str, Any] = {"optimizer.lr": {"log": [0.1, 1.0]}}
    data = {
        "version": 1,
        "sweep": "s",
        "output": "o",
        "base": "b",
        "vary": vary,
        "trials": trials,
        "halving": {"first": {"epochs": 1}, "keep": keep},
        "goal": goal,
    }
    sweep = check_section(data, "sweep", SweepManifest)
    return SweepPlan(
        sweep=sweep.model_dump(mode="json"),
        base={},
        trials=tuple({"optimizer.lr": float(n)} for n in range(trials)),
        repeats=tuple({"train.seed": n} for n in range(repeats)),
        rungs=rung_epochs(8, halving(1, keep)),
    )


@examples(60)
@given(
    st.integers(1, 20),
    st.integers(1, 3),
    st.sampled_from([0.2, 0.5, 0.7]),
    st.integers(0, 10**6),
    st.sampled_from(["accuracy", "loss"]),
)
def test_any_order_of_results_leads_to_the_same_winner(
    trials: int, repeats: int, keep: float, seed: int, metric: str
) -> None:
    """Whoever runs a unit, and whenever: its result is a function of the unit."""
    plan, chance = plan_of(trials, repeats, keep, metric), random.Random(seed)

    def result(unit: Unit) -> UnitResult:
        own = random.Random(hash((seed, unit)))
        failed = own.random() < 0.1
        return UnitResult(code=78) if failed else UnitResult(value=round(own.random(), 1))

    ends = []
    for _ in range(3):
        results: dict[Unit, UnitResult] = {}
        order = []
        while pending := standing(plan, results).pending:
            unit = chance.choice(pending)
            order.append(unit)
            results[unit] = result(unit)
            if chance.random() < 0.05:
                assert len(standings(plan, results)) == trials
                best_of(plan, results)
        assert len(order) == len(set(order))
        ends.append((best_of(plan, results), results, standing(plan, results)))
    assert ends[0] == ends[1] == ends[2]
    best, results, now = ends[0]
    sizes = rung_sizes(trials, len(plan.rungs), plan.manifest.halving)
    for rung, size in enumerate(sizes):
        assert len({unit.trial for unit in results if unit.rung == rung}) <= size
    rows = standings(plan, results)
    if best:
        assert rows[0].trial == best.trial
        assert rows[0].figure == best.figure
    assert {row.trial for row in rows} == set(range(trials))
    assert not {"continuing", "waiting"} & {row.state for row in rows}
    assert not now.pending


def test_a_trial_says_what_it_waits_for() -> None:
    plan = plan_of(3, 2, 0.5)
    done = UnitResult(value=0.5)
    results = {Unit(0, 0, 0): done, Unit(0, 0, 1): done, Unit(0, 1, 0): done}
    states = {row.trial: row.state for row in standings(plan, results)}
    assert len(plan.rungs) > 1
    assert states == {0: "waiting", 1: "continuing", 2: "waiting"}
    best = best_of(plan, results)
    assert best
    assert "trial 0 is best so far, " in describe_best(plan, best, so_far=True)


def test_the_interval_covers_the_repetitions_and_the_images() -> None:
    mean, half = mean_and_half([0.8, 0.9, 1.0])
    assert [mean, half] == pytest.approx([0.9, 4.303 * 0.1 / 3**0.5])
    plan = plan_of(1, 3, 0.5)
    far = {
        Unit(0, 0, repeat): UnitResult(value=value, low=value - 0.01, high=value + 0.01)
        for repeat, value in enumerate((0.5, 0.6, 0.7))
    }
    figure = figure_of(plan, far, Unit(0, 0, 0))
    assert figure.low == pytest.approx(0.6 - 4.303 * 0.1 / 3**0.5)
    equal = {Unit(0, 0, repeat): UnitResult(value=1.0, low=0.7, high=1.0) for repeat in range(3)}
    figure = figure_of(plan, equal, Unit(0, 0, 0))
    # Three sets of few images, all right: not certain, but surer than one of them.
    assert figure.low == pytest.approx(1 - 0.3 / 3**0.5)
    assert figure.high == 1.0
    one = plan_of(1, 1, 0.5)
    assert (
        figure_of(one, {Unit(0, 0, 0): UnitResult(value=0.5, low=0.4, high=0.6)}, Unit(0, 0, 0)).low
        == 0.4
    )
