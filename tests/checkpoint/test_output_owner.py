"""Whose an output is."""

import json

from tests.support.commits import PARTS, write_commit
from worker.checkpoint.claim import claim_attempt
from worker.checkpoint.commit import (
    CommitName,
)
from worker.checkpoint.output_owner import owner_of
from worker.store import Store


def test_the_owner_is_known_though_its_first_record_is_damaged(store: Store) -> None:
    assert owner_of(store) is None
    claim_attempt(store, {"job": "x"}, {}, lambda: None)
    claim_attempt(store, {"job": "x"}, {}, lambda: None)
    state = json.dumps({"step": 3, "identity": {"job": "x"}}).encode()
    write_commit(store, CommitName(3, 2), PARTS | {"state.json": state})
    for number in (1, 2):
        assert owner_of(store) == {"job": "x"}
        store.put(f"attempts/{number:06d}.json", b'{"identity": {"job"')
    assert owner_of(store) == {"job": "x"}
    store.put("checkpoints/00000003-000002/state.json", b"{}")
    assert owner_of(store) is None
