"""L2-SP: weight decay towards the start, in the form of the optimizer's own weight decay."""

import copy

import pytest
import torch
from torch import nn

from worker.model.pull import Pull


def build(name: str, model: nn.Module, decay: float, pull: float) -> torch.optim.Optimizer:
    group = {"params": list(model.parameters()), "weight_decay": decay, "pull": pull, "lr": 0.1}
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[name]([group])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_pull_is_weight_decay_with_another_origin(name: str) -> None:
    """With the start at zero, both are the same; elsewhere, a model shifted by the start is."""
    torch.manual_seed(0)
    decayed = nn.Linear(4, 3)
    shift = {key: torch.randn_like(value) for key, value in decayed.state_dict().items()}
    pulled = copy.deepcopy(decayed)
    ours = build(name, pulled, 0.0, 0.5)
    theirs = build(name, decayed, 0.5, 0.0)
    with torch.no_grad():
        for key, value in pulled.named_parameters():
            value.copy_(shift[key])
    pull = Pull(ours, decoupled=name == "adamw")
    with torch.no_grad():
        for key, value in pulled.named_parameters():
            value.copy_(decayed.state_dict()[key] + shift[key])
    for _ in range(5):
        for one, other in zip(pulled.parameters(), decayed.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        pull.apply(torch.ones((), dtype=torch.bool))
        ours.step()
        theirs.step()
    for key, value in decayed.state_dict().items():
        assert torch.allclose(pulled.state_dict()[key], value + shift[key], atol=1e-5)


def test_a_step_that_is_not_made_pulls_nothing() -> None:
    model = nn.Linear(2, 2)
    optimizer = build("adamw", model, 0.0, 0.5)
    pull = Pull(optimizer, decoupled=True)
    with torch.no_grad():
        model.weight.add_(1.0)
    before = model.weight.clone()
    model.weight.grad = torch.zeros_like(model.weight)
    pull.apply(torch.zeros((), dtype=torch.bool))
    assert torch.equal(model.weight, before)
