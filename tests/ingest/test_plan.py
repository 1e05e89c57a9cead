"""The plan of a pack is a pure function that loses nothing and moves nobody."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from worker.errors import ConfigurationError, DataError
from worker.ingest.duplicates import MAX_DISTANCE, near_pairs
from worker.ingest.plan import make_plan
from worker.ingest.planned import PlanOptions, SetPlan
from worker.ingest.rows import Row, UnitRows
from worker.ingest.splits import SplitOptions


def row(key: str, label: str = "a", **more: object) -> Row:
    fields = {"digest": hash(key) & ((1 << 128) - 1), "bytes": 10, "width": 1, "height": 1, **more}
    return Row(key, label, **fields)  # type: ignore[arg-type]


def plan(
    rows: list[Row], *, shard_bytes: int = 35, bad_share: float | None = None, **split: object
) -> SetPlan:
    options = PlanOptions(
        split=SplitOptions(**split),  # type: ignore[arg-type]
        shard_bytes=shard_bytes,
        bad_share=bad_share,
    )
    return make_plan(rows, None, options)


def split_of(made: SetPlan) -> dict[str, str]:
    """The split of each key."""
    return {
        made.rows[i].key: split.name
        for split in made.splits
        for shard in split.shards
        for i in shard
    }


KEYS = st.lists(
    st.text("abcdef/0123", min_size=1, max_size=8), unique=True, min_size=40, max_size=80
)


@examples(60)
@given(KEYS, st.integers(0, 9), st.floats(0, 0.4), st.floats(0, 0.4))
def test_every_image_is_in_one_shard_of_one_split(
    keys: list[str], seed: int, val: float, test: float
) -> None:
    rows = [row(key, "ab"[n % 2]) for n, key in enumerate(keys)]
    try:
        made = plan(rows, seed=seed, val=val, test=test)
    except ConfigurationError as error:  # too few images for a class in each split
        assert re.search("has no images|no image is in", str(error))
        return
    packed = [i for split in made.splits for shard in split.shards for i in shard]
    assert sorted(packed) == list(range(len(rows)))
    for split in made.splits:
        for shard in split.shards:
            assert len(shard) <= 3
        assert sum(split.counts) == sum(map(len, split.shards))


@examples(60)
@given(KEYS, KEYS, st.integers(0, 9))
def test_more_images_move_none(keys: list[str], more: list[str], seed: int) -> None:
    options: dict[str, Any] = {"seed": seed, "val": 0.3, "test": 0.1}
    few = [row(key) for key in keys]
    many = few + [row(key) for key in more if key not in keys]
    try:
        before, after = split_of(plan(few, **options)), split_of(plan(many[::-1], **options))
    except ConfigurationError:
        return
    assert all(after[key] == split for key, split in before.items())


def test_shares_are_kept_in_every_class() -> None:
    rows = [row(f"{n}", "abcd"[n % 4]) for n in range(8000)]
    made = plan(rows, val=0.1, test=0.2, shard_bytes=10**6)
    for split, share in zip(made.splits, (0.7, 0.1, 0.2), strict=True):
        for count in split.counts:
            assert abs(count / 2000 - share) < 0.03


@pytest.mark.parametrize("by", ["column", "pattern"])
def test_a_group_stays_together(by: str) -> None:
    rows = [
        row(f"p{n // 5:03d}/{n}", group=f"p{n // 5}" if by == "column" else "") for n in range(500)
    ]
    made = plan(rows, val=0.3, group_by=None if by == "column" else r"^(p\d+)/")
    splits = split_of(made)
    for patient in range(100):
        assert len({splits[r.key] for r in rows if r.key.startswith(f"p{patient:03d}/")}) == 1
    with pytest.raises(ConfigurationError, match="--group-by 'x': does not match 'p000/0'"):
        plan([row("p000/0")], val=0.3, group_by="x")


def test_copies_of_an_image_follow_the_first_of_them() -> None:
    rows = [row(f"{n:03d}", digest=n // 3) for n in range(300)]
    made = plan(rows, val=0.4)
    splits = split_of(made)
    for n in range(100):
        assert len({splits[f"{3 * n + k:03d}"] for k in range(3)}) == 1
    assert len(made.copies) == 100


def test_copies_in_two_splits_of_the_source_are_refused() -> None:
    rows = [
        row("a", split="train", digest=1),
        row("b", split="val", digest=1),
        row("c", split="train"),
    ]
    with pytest.raises(DataError, match=r"1 image in more than one split(.|\n)*train: a = val: b"):
        plan(rows)
    options = PlanOptions(split=SplitOptions(), shard_bytes=9, allow_duplicates=True)
    assert make_plan(rows, None, options).copies[0].across


def test_the_source_and_the_options_must_not_disagree() -> None:
    rows = [row("a", split="train"), row("b", split="val")]
    with pytest.raises(ConfigurationError, match="--val: the source already has 1 images in val"):
        plan(rows, val=0.1)
    with pytest.raises(ConfigurationError, match="leave nothing to train on"):
        plan(rows, val=0.5, test=0.5)


def test_one_label_per_image_is_worth_a_warning() -> None:
    rows = [row("a", "x", digest=1), row("b", "y", digest=1), row("c", "x"), row("d", "y")]
    (warning,) = plan(rows).warnings
    assert "1 image with more than one label, such as a (x) = b (y)" in warning


def test_bad_images_are_left_out_within_a_budget() -> None:
    rows = [row(f"{n}") for n in range(99)] + [row("bad", bad="cannot be decoded")]
    with pytest.raises(DataError, match=r"1 image cannot be used; repair(.|\n)*bad: cannot be"):
        plan(rows)
    assert plan(rows, bad_share=0.01).bad == (99,)


def test_keys_that_a_tar_reader_would_split_or_take_for_one_are_changed() -> None:
    rows = [row("a.b"), row("a_b"), row("a.b", digest=7), row("c")]
    made = plan(rows)
    final = [made.keys.get(i, r.key) for i, r in enumerate(rows)]
    assert len(set(final)) == 4
    assert final[1] == "a_b"
    assert not any("." in key for key in final)


@examples(60)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=2, max_size=12), st.randoms())
def test_near_pairs_are_all_found(hashes: list[int], chance: object) -> None:
    flips = [h ^ sum(1 << chance.randrange(64) for _ in range(3)) for h in hashes]  # type: ignore[attr-defined]
    every = np.array(hashes + [f & ((1 << 64) - 1) for f in flips], dtype=np.uint64)
    splits = np.array([0] * len(hashes) + [1] * len(flips))
    expected = {
        (i, j)
        for i in range(len(every))
        for j in range(i + 1, len(every))
        if splits[i] != splits[j] and (int(every[i]) ^ int(every[j])).bit_count() <= MAX_DISTANCE
    }
    assert {(a, b) for a, b in near_pairs(every, splits).tolist()} == expected


@examples(60)
@given(
    st.lists(
        st.builds(
            Row,
            key=st.text(max_size=5),
            label=st.text(max_size=5),
            bad=st.text(max_size=5),
            bytes=st.integers(0, 1 << 40),
            original_bytes=st.integers(0, 1 << 40),
            width=st.integers(0, 1 << 20),
            height=st.integers(0, 1 << 20),
            digest=st.integers(0, (1 << 128) - 1),
            perceptual=st.integers(0, (1 << 64) - 1),
            content=st.integers(0, (1 << 64) - 1),
            chunk=st.integers(-1, 99),
            offset=st.integers(0, 1 << 40),
            resized=st.booleans(),
        ),
        max_size=5,
    )
)
def test_rows_survive_being_staged(rows: list[Row]) -> None:
    again = UnitRows.decode(UnitRows(rows=rows, passed_over={"x": 1}).encode())
    assert again.rows == rows
    assert again.passed_over == {"x": 1}
