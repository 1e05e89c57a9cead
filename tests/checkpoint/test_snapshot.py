"""A restored learner continues to the last bit."""

from typing import Any

import torch
from torch import nn

from bench.learners import CPU, everything, manifest_of, rate_group
from tests.support.commits import step
from tests.support.snapshots import snapshot_of
from worker.checkpoint.snapshot import restore_snapshot
from worker.checkpoint.training_state import State
from worker.model.learner import Learner, build_learner
from worker.model.rate_groups import RateGroup


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


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
        before.model.get_parameter(name).requires_grad = False
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
