"""Either all ranks meet, or none relies on one that has left."""

import random
import threading
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from worker.errors import StopRequested
from worker.ranks import roll_call


def looks(seconds: float, error: Exception) -> Iterator[None]:
    """Wait in small steps; raise the error after some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.0005)
    raise error


@pytest.mark.parametrize("seed", range(40))
def test_no_rank_waits_for_one_that_has_left(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "_POLL_SECONDS", 0.0005)
    chance = random.Random(seed)
    store = dist.HashStore()  # type: ignore[attr-defined]
    met: list[int] = []

    def looks_until_the_others_have_ended() -> Iterator[None]:
        while any(rank.is_alive() for rank in ranks[:2]):
            yield
            time.sleep(0.0005)
        yield
        raise TimeoutError

    def run(rank: int, start: float, stop: float | None) -> None:
        time.sleep(start)
        try:
            roll_call.join(
                store,
                3,
                looks_until_the_others_have_ended()
                if stop is None
                else looks(stop, StopRequested("asked to")),
            )
            met.append(rank)
        except (StopRequested, TimeoutError):
            pass

    # Two of three are asked to stop at about the time at which the last one joins.
    at = chance.uniform(0.002, 0.01)
    ranks = [
        threading.Thread(target=run, args=(0, 0.0, at + chance.uniform(-0.002, 0.002))),
        threading.Thread(target=run, args=(1, 0.0, at + chance.uniform(-0.002, 0.002))),
        threading.Thread(target=run, args=(2, at, None)),
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(met) in (0, 3)


def test_a_rank_that_left_can_join_again() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    with pytest.raises(StopRequested):
        roll_call.join(store, 2, looks(0.01, StopRequested("asked to")))
    threads = [
        threading.Thread(target=roll_call.join, args=(store, 2, looks(60, TimeoutError())))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
