"""Commits are whole, verified and ordered."""

import json

import pytest

from tests.support.commits import PARTS, write_commit
from tests.support.stores import keys
from worker.checkpoint.commit import (
    CommitName,
    delete_commit,
    list_commits,
    read_commit,
)
from worker.errors import Superseded
from worker.store import Store


def test_a_commit_is_read_back(store: Store) -> None:
    name = CommitName(12, 3)
    write_commit(store, name, PARTS)
    assert list_commits(store) == [name]
    found = read_commit(store, name)
    assert found and {part: bytes(data) for part, data in found.items()} == PARTS
    record = json.loads(store.get("commits/00000012-000003.json"))
    assert (record["step"], record["attempt"], len(record["parts"])) == (12, 3, 3)


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "record"])
def test_a_damaged_checkpoint_is_passed_over(store: Store, damage: str) -> None:
    name = CommitName(12, 3)
    write_commit(store, name, PARTS)
    part = f"checkpoints/{name}/model.safetensors"
    if damage == "missing":
        store.delete(part)
    elif damage == "record":
        store.put(f"commits/{name}.json", b'{"parts": [{"name": 1}]}')
    else:
        store.put(part, b"weightz" if damage == "altered" else b"weig")
    assert read_commit(store, name) is None


def test_parts_without_a_record_do_not_exist(store: Store) -> None:
    store.put("checkpoints/00000012-000003/model", b"weights")
    assert list_commits(store) == []


def test_the_newest_step_and_then_attempt_comes_first(store: Store) -> None:
    names = [CommitName(*pair) for pair in ((5, 2), (12, 1), (5, 1), (12, 3))]
    for name in names:
        write_commit(store, name, PARTS)
    store.put("commits/notes.txt", b"")
    assert list_commits(store) == sorted(names, reverse=True)


def test_nobody_commits_over_another(store: Store) -> None:
    write_commit(store, CommitName(5, 1), PARTS)
    with pytest.raises(Superseded):
        write_commit(store, CommitName(5, 1), PARTS | {"model.safetensors": b"other"})
    assert json.loads(store.get("commits/00000005-000001.json"))["parts"][0]["bytes"] == 7


def test_deleting_leaves_nothing(store: Store) -> None:
    write_commit(store, CommitName(5, 1), PARTS)
    delete_commit(store, CommitName(5, 1))
    assert keys(store) == []
