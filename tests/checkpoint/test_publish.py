"""Publishing a result, also past damaged and partial ones."""

import json
from typing import Any

import pytest

from tests.support.commits import published
from tests.support.stores import keys
from worker.checkpoint.publication_record import read_done, stage_part
from worker.checkpoint.publish import publish, settle
from worker.checkpoint.tensor_files import stream_bytes
from worker.errors import InfrastructureError
from worker.store import Store


@pytest.mark.parametrize(
    "damage", [{"done": {"stpp": 3}}, {"parts": []}, {"attempt": 7}, {"parts": [{"name": ".."}]}]
)
def test_a_damaged_publication_is_passed_over(store: Store, damage: dict[str, Any]) -> None:
    assert published(store)
    record = json.loads(store.get("publications/000001.json")) | damage
    store.put("publications/000001.json", json.dumps(record).encode())
    store.delete("done.json")
    assert settle(store, 1) is None
    assert published(store, 2)
    assert read_done(store)


def test_a_result_of_more_epochs_replaces_one_of_fewer_and_never_the_other_way(
    store: Store,
) -> None:
    assert published(store, 1, epochs=2)
    assert settle(store, 3) is None
    assert published(store, 2, epochs=3)
    assert store.get("final/model.json") == b'{"by": 2}'
    assert not published(store, 3, epochs=2)
    assert not published(store, 4, epochs=3)
    done = settle(store, 2)
    assert done and (done.attempt, done.epochs) == (2, 3)
    assert store.get("final/model.json") == b'{"by": 2}'


def test_a_copy_of_a_result_that_was_cut_short_is_completed(store: Store) -> None:
    """Also where the result that users see would do."""
    assert published(store, 1, epochs=2)
    old = {name: store.get(name) for name in ("done.json", "final/model.json")}
    part = stage_part(store, 2, "final/model.json", stream_bytes(b"new"))
    result = {"epochs": 3, "step": 9, "weights": {"step": 9, "accuracy": None}}
    assert publish(store, 2, [part], result=result, check=lambda: None)
    stage_part(store, 2, "final/model.json", stream_bytes(b"new"))
    for name, data in old.items():
        store.put(name, data)
    done = settle(store, 1)
    assert done and done.attempt == 2
    assert store.get("final/model.json") == b"new"


def test_a_result_that_lost_a_part_does_not_harm_the_one_before_it(store: Store) -> None:
    assert published(store, 1, epochs=2)
    parts = [
        stage_part(store, 2, name, stream_bytes(b"new"))
        for name in ("final/model.safetensors", "final/model.json")
    ]
    store.put("records/000002/result/final/model.json", b"cut")
    result = {"epochs": 3, "step": 9, "weights": {"step": 9, "accuracy": None}}
    with pytest.raises(InfrastructureError, match="cannot be read back"):
        publish(store, 2, parts, result=result, check=lambda: None)
    assert store.get("final/model.json") == b'{"by": 1}'
    assert "final/model.safetensors" not in keys(store)
    done = settle(store, 1)
    assert done and done.attempt == 1
