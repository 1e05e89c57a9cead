"""Attempts claim an output one after another, whatever else lies there."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.commits import published
from worker.checkpoint.claim import attempt_numbers, claim_attempt, ensure_newest
from worker.checkpoint.publish import settle
from worker.errors import Superseded
from worker.store import Store, open_store


def test_attempts_are_numbered_and_fence(bucket: str) -> None:
    store = open_store(bucket)
    assert attempt_numbers(store) == []
    with ThreadPoolExecutor(8) as pool:
        numbers = list(
            pool.map(lambda _: claim_attempt(store, {"job": "x"}, {}, lambda: None), range(12))
        )
    assert sorted(numbers) == list(range(1, 13))
    ensure_newest(store, 12)
    with pytest.raises(Superseded, match="attempt 12 of this job has started; ending attempt 11"):
        ensure_newest(store, 11)


def test_junk_that_is_named_like_an_attempt_or_a_publication_locks_nobody_out(
    store: Store,
) -> None:
    for number in ("000007", "999999", "999999999"):
        store.put(f"attempts/{number}.json", b"junk")
        store.put(f"publications/{number}.json", b"junk")
    for expected in (1, 2, 3):
        assert claim_attempt(store, {"job": "x"}, {}, lambda: None) == expected
        ensure_newest(store, expected)
    assert published(store, 3)
    done = settle(store, 1)
    assert done and done.attempt == 3
