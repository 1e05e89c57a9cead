"""How often each sample is seen: exact counts, on any ranks, and the same after any change."""

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from worker.data.epoch_plan import EpochPlan, Ids, keyed_hash, lay_out, sample_ids
from worker.data.multiplicity import Fold, Multiplicities, Sampling, held_out
from worker.data.sample_table import TABLE_DTYPE, SampleTable


def table_of(labels: Ids, groups: Ids | None = None, first: int = 0) -> SampleTable:
    table = np.empty(len(labels), TABLE_DTYPE)
    table["key"] = keyed_hash(99, np.arange(first, first + len(labels)))
    table["group"] = table["key"] if groups is None else keyed_hash(98, groups)
    table["label"] = labels
    return table


@st.composite
def cases(draw: st.DrawFn) -> tuple[SampleTable, int, Sampling, int]:
    classes = draw(st.integers(1, 5))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=120))
    groups = draw(st.none() | st.integers(1, 20))
    table = table_of(np.array(labels), None if groups is None else np.arange(len(labels)) % groups)
    of = draw(st.integers(2, 6))
    left_out = draw(st.lists(st.sampled_from(table["key"].tolist()), max_size=5))
    sampling = Sampling(
        balance=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]) | st.floats(0, 1)),
        fold=draw(st.none() | st.builds(Fold, of=st.just(of), hold=st.integers(0, of - 1))),
        share=draw(st.sampled_from([1.0, 0.5, 0.01]) | st.floats(0.001, 1)),
        without=dict.fromkeys(left_out, ""),
    )
    return table, classes, sampling, draw(st.integers(0, 2**32 - 1))


@examples(1000)
@given(cases(), st.integers(0, 10_000))
def test_an_epoch_has_the_planned_counts(
    case: tuple[SampleTable, int, Sampling, int], epoch: int
) -> None:
    table, classes, sampling, seed = case
    found = Multiplicities(table, classes, sampling, seed)
    seen = found.of_epoch(epoch)
    assert seen.sum() == found.per_epoch == found.class_places.sum()
    by_class = np.bincount(table["label"], weights=seen, minlength=classes)
    assert np.array_equal(by_class, found.class_places)
    gone = np.isin(table["key"], list(sampling.without))
    gone[held_out(table, sampling)] = True
    assert not seen[gone].any()
    for label in range(classes):
        own = (table["label"] == label) & ~gone
        # Rounded up, so that a class with any image keeps one.
        used = int(np.ceil(round(own.sum() * sampling.share, 9)))
        assert np.count_nonzero(seen[own]) <= used
        if used:
            assert found.class_places[label] > 0
        if not sampling.balance:
            assert sorted(seen[own]) == [0] * (own.sum() - used) + [1] * used


@examples(300)
@given(cases(), st.integers(1, 12))
def test_the_samples_of_a_class_take_turns(
    case: tuple[SampleTable, int, Sampling, int], epochs: int
) -> None:
    table, classes, sampling, seed = case
    found = Multiplicities(table, classes, sampling, seed)
    total = sum(found.of_epoch(epoch) for epoch in range(epochs))
    assert isinstance(total, np.ndarray)
    gone = np.isin(table["key"], list(sampling.without))
    gone[held_out(table, sampling)] = True
    for label in range(classes):
        counts = total[(table["label"] == label) & ~gone]
        if sampling.share == 1 and len(counts):
            assert counts.max() - counts.min() <= 1


@examples(500)
@given(cases(), st.integers(0, 100), st.integers(1, 7), st.data())
def test_any_ranks_see_each_sample_as_often_as_planned(
    case: tuple[SampleTable, int, Sampling, int], epoch: int, ranks: int, data: st.DataObject
) -> None:
    table, classes, sampling, seed = case
    seen = Multiplicities(table, classes, sampling, seed).of_epoch(epoch)
    cuts = data.draw(st.lists(st.integers(0, len(table)), max_size=8).map(sorted))
    ends = np.array([*cuts, len(table)])
    counts, draws = lay_out(seen, ends)
    if not len(draws):
        return
    batch_size = data.draw(st.integers(1, 40))
    plan = EpochPlan(counts, batch_size, seed, epoch=epoch, draws=draws)
    parts = [plan.batch(step, rank, ranks) for step in range(plan.steps) for rank in range(ranks)]
    drawn = np.concatenate(parts)
    assert len(set(drawn.tolist())) == len(drawn)  # each copy is another draw
    assert np.array_equal(np.bincount(sample_ids(drawn), minlength=len(table)), seen)
    step = data.draw(st.integers(0, plan.steps - 1))  # a seek is as good as coming by
    again = EpochPlan(counts, batch_size, seed, epoch=epoch, draws=draws).batch(step)
    assert np.array_equal(again, np.concatenate(parts[step * ranks : (step + 1) * ranks]))


def test_balance_moves_places_between_classes() -> None:
    table = table_of(np.repeat([0, 1], [900, 100]))
    places = {
        balance: Multiplicities(table, 2, Sampling(balance=balance), 0).class_places.tolist()
        for balance in (0.0, 0.5, 1.0)
    }
    assert places == {0.0: [900, 100], 0.5: [750, 250], 1.0: [500, 500]}


def test_copies_spread_over_the_epoch() -> None:
    """Ten draws of one image in one batch would be a batch of one image."""
    table = table_of(np.repeat([0, 1], [990, 10]))
    found = Multiplicities(table, 2, Sampling(balance=1.0), 0)
    counts, draws = lay_out(found.of_epoch(0), np.arange(100, 1001, 100))
    plan = EpochPlan(counts, 20, seed=0, epoch=0, draws=draws)
    most = [
        max(Counter(sample_ids(plan.batch(step)).tolist()).values()) for step in range(plan.steps)
    ]
    # 50 draws of each rare image over 50 batches: by chance alone, some batch has a few of one.
    assert np.mean(most) < 5


def test_folds_partition_the_set_by_group_and_stay_when_others_are_added() -> None:
    groups = np.arange(300) % 60
    table = table_of(np.zeros(300, np.int64), groups)
    folds = [set(held_out(table, Sampling(fold=Fold(of=5, hold=k))).tolist()) for k in range(5)]
    assert sorted(number for fold in folds for number in fold) == list(range(300))
    assert all(len({number % 60 for number in fold}) * 5 == len(fold) for fold in folds)
    more = np.concatenate([table, table_of(np.zeros(50, np.int64), first=300)])
    for number, fold in enumerate(folds):
        assert fold <= set(held_out(more, Sampling(fold=Fold(of=5, hold=number))).tolist())


def test_a_larger_share_contains_a_smaller_one() -> None:
    table = table_of(np.arange(500) % 3)
    used = [
        set(np.flatnonzero(Multiplicities(table, 3, Sampling(share=share), 4).of_epoch(7)))
        for share in (0.01, 0.1, 0.5)
    ]
    assert used[0] < used[1] < used[2]
    assert [len(each) for each in used] == [6, 51, 251]  # rounded up in each of the three classes
    other = Multiplicities(table, 3, Sampling(share=0.1), 5).of_epoch(7)
    assert set(np.flatnonzero(other)) != used[1]


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_a_million_samples_in_100_000_shards(balance: float) -> None:
    """Memory is 20 bytes per sample for the job, and 8 for the plan of an epoch."""
    samples, shards = 1_000_000, 100_000
    labels = np.minimum(np.random.default_rng(0).geometric(0.02, samples), 500) - 1
    table, ends = table_of(labels), np.arange(1, shards + 1) * (samples // shards)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    found = Multiplicities(table, 500, Sampling(balance=balance), 0)
    kept = tracemalloc.get_traced_memory()[0] - before
    counts, draws = lay_out(found.of_epoch(3), ends)
    plan = EpochPlan(counts, 1024, seed=0, epoch=3, draws=draws)
    more = tracemalloc.get_traced_memory()[0] - before - kept
    tracemalloc.stop()
    assert kept < 21 * samples
    assert more < 8 * samples + 60 * len(counts)
    began = time.process_time()
    for step in range(0, plan.steps, 10):
        plan.batch(step, 3, 8)
    late = time.process_time()
    plan.batch(plan.steps - 2)
    assert time.process_time() - late < max(1.0, late - began)
