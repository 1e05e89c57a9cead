"""The plan: each sample once, the same global batches on any number of ranks, seeks for free."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from worker.data.epoch_plan import EpochPlan, Ids, default_lanes, keyed_hash, keyed_uniform, split


@st.composite
def plans(draw: st.DrawFn) -> EpochPlan:
    counts = draw(st.lists(st.integers(0, 60), min_size=1, max_size=20).filter(sum))
    lanes = draw(st.none() | st.integers(1, 12))
    return EpochPlan(
        np.array(counts),
        batch_size=draw(st.integers(1, 96)) if lanes is None else lanes * draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 2**32 - 1)),
        epoch=draw(st.integers(0, 1000)),
        lanes=lanes,
        window=draw(st.integers(1, 80)),
    )


def epoch_of(plan: EpochPlan) -> Ids:
    return np.concatenate([plan.batch(step) for step in range(plan.steps)])


@examples(400)
@given(plans())
def test_each_sample_comes_exactly_once(plan: EpochPlan) -> None:
    assert sorted(epoch_of(plan)) == list(range(plan.total))


@examples(400)
@given(plans(), st.integers(1, 12), st.data())
def test_ranks_share_the_same_global_batches(
    plan: EpochPlan, world_size: int, data: st.DataObject
) -> None:
    """From any position, which costs no look at what comes before."""
    for step in range(data.draw(st.integers(0, plan.steps - 1)), plan.steps):
        parts = [plan.batch(step, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), plan.batch(step))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert len(parts[0]) > 0
        assert plan.size(step) == sum(map(len, parts))


@examples(300)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 96), st.integers(1, 12)
)
def test_shards_per_rank_are_counted(counts: list[int], batch_size: int, world_size: int) -> None:
    plan = EpochPlan(np.array(counts), batch_size, seed=0, epoch=0)
    for rank in range(world_size):
        full = [step for step in range(plan.steps) if plan.size(step) == batch_size]
        parts = [plan.batch(step, rank, world_size) for step in full]
        ids = np.concatenate([*parts, np.empty(0, dtype=np.int64)])
        read = len(np.unique(np.searchsorted(np.cumsum(counts), ids, side="right")))
        assert read <= plan.shards(rank, world_size) <= len(counts)
    alone = EpochPlan(np.full(64, 100), 64, seed=0, epoch=0)
    assert [alone.shards(rank, 8) for rank in range(8)] == [8] * 8


@examples(200)
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
    counts = np.full(100_000, 10)
    tracemalloc.start()
    plan = EpochPlan(counts, 256, seed=0, epoch=0)
    _, building = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    begin, _ = tracemalloc.get_traced_memory()
    for step in (0, plan.steps // 2, plan.steps - 1):
        assert len(plan.batch(step, rank=7, world_size=8)) == plan.size(step) // 8
    _, planning = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.steps == 3907
    assert plan.size(plan.steps - 1) == 1_000_000 % 256
    assert building < 100_000 * 8 * 12  # a few numbers per shard, none per sample
    assert planning - begin < 1_000_000  # a rank's own window


@pytest.mark.parametrize(
    ("counts", "batch_size"),
    [([5], 64), ([1000], 64), ([1] * 50, 8), ([999, 1, 1], 16), ([0, 0, 7, 0], 4)],
    ids=["fewer than a batch", "one shard", "tiny shards", "uneven", "empty shards"],
)
def test_hard_cases_hold_for_eight_ranks(counts: list[int], batch_size: int) -> None:
    plan = EpochPlan(np.array(counts), batch_size, seed=0, epoch=3)
    parts = [[plan.batch(step, rank, 8) for step in range(plan.steps)] for rank in range(8)]
    assert {len(part) for part in parts} == {plan.steps}
    ids = np.concatenate([batch for part in parts for batch in part])
    assert sorted(ids) == list(range(sum(counts)))


@given(st.integers(1, 20_000))
def test_default_lanes_divide_the_batch(batch_size: int) -> None:
    lanes = default_lanes(batch_size)
    assert batch_size % lanes == 0
    assert lanes <= max(32, batch_size // 16)


@examples(50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 99), st.permutations(range(50)))
def test_uniform_numbers_belong_to_the_sample(seed: int, epoch: int, ids: list[int]) -> None:
    whole = keyed_uniform(7, seed, epoch, np.arange(50))
    assert np.array_equal(keyed_uniform(7, seed, epoch, np.array(ids)), whole[ids])
    assert ((whole >= 0) & (whole < 1)).all()


@given(st.integers(0, 1000), st.integers(1, 16))
def test_split_covers_everything_once(total: int, world_size: int) -> None:
    bounds = [split(total, rank, world_size) for rank in range(world_size)]
    assert [place for start, stop in bounds for place in range(start, stop)] == list(range(total))
