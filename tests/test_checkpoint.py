"""Commits, attempts, retention, and optimizer state by name."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.learners import CPU, everything, manifest_of, rate_group
from tests.support.snapshots import snapshot_of
from tests.support.stores import keys
from worker.checkpoint import retention
from worker.checkpoint.claim import attempt_numbers, claim_attempt, ensure_newest
from worker.checkpoint.cleanup import clean
from worker.checkpoint.commit import (
    CommitName,
    delete_commit,
    list_commits,
    publish_commit,
    read_commit,
    write_parts,
)
from worker.checkpoint.output_owner import owner_of
from worker.checkpoint.publication_record import read_done, stage_part
from worker.checkpoint.publish import publish, settle
from worker.checkpoint.retention import abandoned, expendable
from worker.checkpoint.snapshot import restore_snapshot
from worker.checkpoint.tensor_files import stream_bytes, stream_tensors
from worker.checkpoint.training_state import State
from worker.errors import InfrastructureError, Superseded
from worker.model.learner import Learner, build_learner
from worker.model.rate_groups import RateGroup
from worker.store import Store, open_store

PARTS = {
    "model.safetensors": b"weights",
    "optimizer.safetensors": b"moments",
    "state.json": b"{}",
}


def write_commit(store: Store, name: CommitName, parts: dict[str, bytes]) -> None:
    streams = {part: stream_bytes(data) for part, data in parts.items()}
    publish_commit(store, name, write_parts(store, name, streams))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


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


def test_attempts_are_numbered_and_fence(bucket: str) -> None:
    store = open_store(bucket)
    assert attempt_numbers(store) == []
    with ThreadPoolExecutor(8) as pool:
        numbers = list(
            pool.map(lambda _: claim_attempt(store, {"job": "x"}, {}, lambda: None), range(12))
        )
    assert sorted(numbers) == list(range(1, 13))
    ensure_newest(store, 12)
    with pytest.raises(Superseded, match="attempt 12 of this job has started, attempt 11 ends"):
        ensure_newest(store, 11)


NAMES = st.lists(st.builds(CommitName, st.integers(0, 50), st.integers(1, 5)), unique=True)


@given(NAMES, st.data(), st.integers(1, 4), st.none() | st.integers(0, 50))
def test_retention_never_takes_what_may_be_needed(
    commits: list[CommitName], data: st.DataObject, keep: int, best: int | None
) -> None:
    trusted = [name for name in commits if data.draw(st.booleans())]
    gone = expendable(commits, trusted, keep, best)
    left = [name for name in trusted if name not in gone]
    assert len(left) >= min(keep, len(trusted))
    assert best not in {name.step for name in gone}
    if gone:
        assert len([name for name in left if name.step != best]) <= keep
        assert max(gone) < sorted(left, reverse=True)[keep - 1]
    if trusted:
        assert max(trusted) in left


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    model(torch.randn(5, 3, 4, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def learner_with(model: nn.Module, groups: tuple[RateGroup, ...], **settings: Any) -> Learner:
    return build_learner(model, groups, manifest_of([{"match": "*"}], **settings), CPU)


def test_a_restored_model_goes_on_to_the_last_bit() -> None:
    models = [small_model().to(memory_format=torch.channels_last) for _ in range(2)]
    learners = [learner_with(model, everything(model, 0.1)) for model in models]
    for seed in range(3):
        step(models[0], learners[0].optimizer, seed)
    parts = snapshot_of(learners[0], {"step": 3})
    assert State.parse(bytes(parts["state.json"])) == State(step=3)
    restore_snapshot(parts, learners[1])
    for seed in range(3, 6):
        for model, learner in zip(models, learners, strict=True):
            step(model, learner.optimizer, seed)
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name


def test_optimizer_state_follows_names_and_not_positions() -> None:
    one, other = small_model(), small_model()
    first = learner_with(one, everything(one, 0.1))
    optimizer = first.optimizer
    step(one, optimizer, 0)
    parts = snapshot_of(first, {})
    groups = (
        rate_group("3", 0.2, "3.weight", "3.bias"),
        rate_group("0", 0.2, "0.weight", "0.bias"),
    )
    second = learner_with(other, groups)
    restore_snapshot(parts, second)
    reordered = second.optimizer
    parameters, others = dict(one.named_parameters()), dict(other.named_parameters())
    for name in ("3.weight", "3.bias", "0.weight", "0.bias"):
        kept = reordered.state[others[name]]["exp_avg"]
        assert torch.equal(kept, optimizer.state[parameters[name]]["exp_avg"]), name
    assert reordered.param_groups[0]["lr"] == 0.2
    assert others["1.weight"] not in reordered.state


def test_another_optimizer_starts_afresh() -> None:
    one, other = small_model(), small_model()
    first = learner_with(one, everything(one, 0.1), name="sgd")
    step(one, first.optimizer, 0)
    second = learner_with(other, everything(other, 0.1), name="adamw")
    restore_snapshot(snapshot_of(first, {}), second)
    assert not second.optimizer.state
    step(other, second.optimizer, 1)
    again = learner_with(small_model(), everything(one, 0.1), name="sgd")
    restore_snapshot(snapshot_of(first, {}), again)
    assert len(again.optimizer.state) == len(list(one.parameters()))


def test_momentum_survives_a_change_of_groups() -> None:
    """Parameters with a buffer and such without, frozen until now, come into one group."""
    settings = manifest_of([{"match": "*"}], name="sgd")

    def learner(*groups: RateGroup) -> Learner:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        return build_learner(model, groups, settings, CPU)

    def step(learner: Learner) -> None:
        learner.model(torch.ones(3, 4)).sum().backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad()

    first, last = ("0.weight", "0.bias"), ("1.weight", "1.bias")
    before = learner(rate_group("a", 0.1, *first, release=9), rate_group("b", 0.1, *last))
    for name in first:
        before.model.get_parameter(name).requires_grad_(False)
    step(before)
    parts = snapshot_of(before, {})
    after = learner(rate_group("all", 0.1, *first, *last))
    restore_snapshot(parts, after)
    state = after.optimizer.state
    kept = state[after.model.get_parameter("1.weight")]["momentum_buffer"].clone()
    assert kept.abs().sum() > 0
    step(after)
    assert not torch.equal(state[after.model.get_parameter("1.weight")]["momentum_buffer"], kept)
    assert state[after.model.get_parameter("0.weight")]["momentum_buffer"].abs().sum() > 0


@given(
    st.dictionaries(st.builds(CommitName, st.integers(0, 9), st.integers(1, 5)), st.floats(0, 300)),
    st.data(),
    st.integers(1, 5),
)
def test_only_what_older_attempts_have_left_is_abandoned(
    written: dict[CommitName, float], data: st.DataObject, attempt: int
) -> None:
    commits = [name for name in written if data.draw(st.booleans())]
    gone = abandoned(written, commits, attempt, 300.0)
    for name, at in written.items():
        old = name not in commits and name.attempt < attempt and 300 - at > 120
        assert (name in gone) == old


@pytest.mark.parametrize("kind", ["s3", "local"])
def test_what_dead_attempts_have_left_is_removed(
    kind: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts without a commit and broken-off uploads of older attempts, and nothing of others."""
    store = open_store(f"{bucket}/run" if kind == "s3" else f"{tmp_path}/run")
    for name in (CommitName(5, 1), CommitName(6, 3), CommitName(7, 2)):
        write_parts(store, name, {"state.json": stream_bytes(b"{}")})
    dead = "checkpoints/00000005-000001/model.safetensors"
    if kind == "s3":
        where = {"Bucket": bucket.removeprefix("s3://"), "Key": f"run/{dead}"}
        client = boto3.client("s3")
        client.create_multipart_upload(**where)
    else:
        (tmp_path / "run" / dead).with_name(".tmp-model.safetensors-x").write_bytes(b"half")
    for name in (CommitName(4, 1), CommitName(8, 2)):
        write_commit(store, name, PARTS)
    clean(store, CommitName(8, 2), [CommitName(8, 2)], 9, None)
    assert "checkpoints/00000005-000001/state.json" in keys(store), "it may not be dead yet"
    monkeypatch.setattr(retention, "DEAD_AFTER_SECONDS", -1.0)
    clean(store, CommitName(8, 2), [CommitName(8, 2)], 9, None)
    names = {key.split("/")[1] for key in keys(store) if key.startswith("checkpoints/")}
    assert names == {"00000004-000001", "00000006-000003", "00000007-000002", "00000008-000002"}
    if kind == "s3":
        assert "Uploads" not in client.list_multipart_uploads(Bucket=where["Bucket"])
    else:
        assert not list(tmp_path.rglob(".tmp-*"))


def test_a_checkpoint_is_plain_safetensors() -> None:
    tensors = {
        "wide": torch.randn(3, 4, dtype=torch.float64),
        "half": torch.randn(5).to(torch.bfloat16),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 3),
        "count": torch.tensor(7),
    }
    stream = stream_tensors(tensors)
    data = b"".join(stream.pieces())
    assert len(data) == stream.size
    loaded = safetensors.torch.load(data)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    assert b"".join(stream_tensors(loaded).pieces()) == data


def test_the_best_evaluation_is_that_of_the_lower_loss_among_equals() -> None:
    state = State()
    for step, accuracy, loss in ((1, 0.5, 0.9), (2, 0.8, 0.7), (3, 0.8, 0.6), (4, 0.8, None)):
        state.step = step
        state.note_evaluation(loss, accuracy, 0.0)
    assert (state.best_step, state.best_accuracy, state.best_loss) == (3, 0.8, 0.6)
    assert (state.evaluated, state.stale) == (4, 2)


def published(store: Store, attempt: int = 1, epochs: int = 1) -> bool:
    data = f'{{"by": {attempt}}}'.encode()
    part = stage_part(store, attempt, "final/model.json", stream_bytes(data))
    result = {"epochs": epochs, "step": 6, "weights": {"step": 6, "accuracy": None}}
    return publish(store, attempt, [part], result=result, check=lambda: None)


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
    with pytest.raises(InfrastructureError, match="not read back"):
        publish(store, 2, parts, result=result, check=lambda: None)
    assert store.get("final/model.json") == b'{"by": 1}'
    assert "final/model.safetensors" not in keys(store)
    done = settle(store, 1)
    assert done and done.attempt == 1


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
