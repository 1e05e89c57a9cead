"""The optimiser over the rate groups, and what freezing means for a model."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from worker.model.groups import RateGroup

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def freeze(model: nn.Module, groups: Sequence[RateGroup]) -> None:
    """Take the frozen groups' parameters out of autograd, so that no backward runs for them."""
    parameters = dict(model.named_parameters())
    for group in groups:
        for name in group.parameters:
            parameters[name].requires_grad_(not group.frozen)


def train_mode(model: nn.Module) -> None:
    """`model.train()`, but frozen BatchNorms keep their statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(
            parameter.requires_grad for parameter in module.parameters()
        ):
            module.eval()


def build_optimizer(
    model: nn.Module, groups: Sequence[RateGroup], name: str
) -> torch.optim.Optimizer:
    """The optimiser `name` with one parameter group per trained rate group, in their order."""
    parameters = dict(model.named_parameters())
    return _OPTIMIZERS[name](
        [
            {
                "params": [parameters[name] for name in group.parameters],
                "lr": group.lr,
                "weight_decay": group.weight_decay,
                "name": group.name,
            }
            for group in groups
            if not group.frozen
        ]
    )
