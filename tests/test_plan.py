"""The plan: each sample once, the same global batches on any number of ranks, seeks for free."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data.plan import EpochPlan, Ids, keyed_hash, split


@st.composite
def plans(draw: st.DrawFn) -> EpochPlan:
    counts = draw(st.lists(st.integers(0, 60), min_size=1, max_size=20).filter(sum))
    return EpochPlan(
        np.array(counts),
        batch_size=draw(st.integers(1, 96)),
        seed=draw(st.integers(0, 2**32 - 1)),
        epoch=draw(st.integers(0, 1000)),
        window=draw(st.integers(1, 80)),
    )


def epoch_of(plan: EpochPlan) -> Ids:
    return np.concatenate([plan.batch(step) for step in range(plan.steps)])


@settings(max_examples=500, deadline=None)
@given(plans())
def test_each_sample_comes_exactly_once(plan: EpochPlan) -> None:
    assert sorted(epoch_of(plan)) == list(range(plan.total))


@settings(max_examples=500, deadline=None)
@given(plans(), st.integers(1, 12))
def test_ranks_share_the_same_global_batches(plan: EpochPlan, world_size: int) -> None:
    for step in range(plan.steps):
        parts = [plan.batch(step, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), plan.batch(step))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert len(parts[0]) > 0
        assert plan.size(step) == sum(map(len, parts))


@settings(max_examples=200, deadline=None)
@given(plans())
def test_only_the_last_batch_may_be_smaller(plan: EpochPlan) -> None:
    sizes = [len(plan.batch(step)) for step in range(plan.steps)]
    assert set(sizes[:-1]) <= {sizes[0]}
    assert 0 < sizes[-1] <= sizes[0]
    with pytest.raises(IndexError):
        plan.batch(plan.steps)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    counts = np.array([40, 40, 40])
    first = epoch_of(EpochPlan(counts, 8, seed=0, epoch=0))
    assert np.array_equal(first, epoch_of(EpochPlan(counts, 8, seed=0, epoch=0)))
    assert not np.array_equal(first, epoch_of(EpochPlan(counts, 8, seed=0, epoch=1)))
    assert not np.array_equal(first, epoch_of(EpochPlan(counts, 8, seed=1, epoch=0)))


def test_batches_mix_shards() -> None:
    plan = EpochPlan(np.full(64, 100), 64, seed=0, epoch=0)
    shards = [len(np.unique(plan.batch(step) // 100)) for step in range(plan.steps)]
    assert np.mean(shards) > 10


def test_order_is_pinned_for_ever() -> None:
    """A changed order would silently repeat samples in every run that is resumed across it."""
    assert keyed_hash(1, 2, 3).tolist() == [15020427595393229491]
    plan = EpochPlan(np.array([5, 3, 4]), 4, seed=7, epoch=2)
    assert [plan.batch(step).tolist() for step in range(3)] == [
        [6, 0, 4, 11],
        [5, 1, 3, 10],
        [7, 2, 8, 9],
    ]


def test_a_hundred_thousand_shards_are_planned() -> None:
    plan = EpochPlan(np.full(100_000, 10), 256, seed=0, epoch=0)
    assert plan.steps == 3907
    assert len(plan.batch(plan.steps - 1)) == 1_000_000 % 256


@given(st.integers(0, 1000), st.integers(1, 16))
def test_split_covers_everything_once(total: int, world_size: int) -> None:
    bounds = [split(total, rank, world_size) for rank in range(world_size)]
    assert [place for start, stop in bounds for place in range(start, stop)] == list(range(total))
