"""The optimizer over the rate groups, and what being frozen means for a model."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from worker.manifest import Optimizer
from worker.model.rate_groups import RateGroup
from worker.model.schedule import Factor

_MOMENTUM = 0.9


def freeze_at(model: nn.Module, groups: Sequence[RateGroup], step: int) -> None:
    """Put model and autograd into the state in which a step trains.

    What is frozen takes no part in backward and is in evaluation mode, dropout and stochastic depth
    included; so is a BatchNorm whose group keeps its statistics.

    Args:
        model: The model.
        groups: Its rate groups, which say when each is released.
        step: The global step, from 0.
    """
    parameters = dict(model.named_parameters())
    still: set[nn.Parameter] = set()
    for group in groups:
        for name in group.parameters:
            parameters[name].requires_grad_(group.trains_at(step))
            if not group.batch_norm:
                still.add(parameters[name])
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        frozen = own and not any(parameter.requires_grad for parameter in own)
        if frozen or (isinstance(module, _BatchNorm) and still.issuperset(own)):
            module.eval()
        if isinstance(module, nn.Sequential):
            _rest_before_frozen(module)


def _rest_before_frozen(sequence: nn.Sequential) -> None:
    """Treat a layer without parameters (dropout) as the layer that it leads to."""
    leads_to_frozen = False
    for module in reversed(sequence):
        own = list(module.parameters())
        if own:
            leads_to_frozen = not any(parameter.requires_grad for parameter in own)
        elif leads_to_frozen:
            module.eval()


def build_optimizer(
    model: nn.Module, groups: Sequence[RateGroup], settings: Optimizer
) -> torch.optim.Optimizer:
    """Build an optimizer with a parameter group per rate group, in their order.

    Groups that are never trained have none. Uses fused kernels if torch has them.

    Args:
        model: The model.
        groups: Its rate groups.
        settings: The optimizer of the manifest.

    Returns:
        The optimizer; `initial_lr` of a parameter group is its full rate.
    """
    parameters = dict(model.named_parameters())
    trained = [
        {
            "params": [parameters[name] for name in group.parameters],
            "lr": group.lr,
            "initial_lr": group.lr,
            "weight_decay": group.weight_decay,
            "name": group.name,
        }
        for group in groups
        if group.release is not None
    ]
    if settings.name == "sgd":
        momentum = _MOMENTUM if settings.momentum is None else settings.momentum
        return torch.optim.SGD(trained, momentum=momentum, fused=True)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(trained, fused=True)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD the momentum, zero, of all that is trained now.

    Its fused kernel would leave what it makes by itself unset if the first step is left out.
    """
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if parameter.requires_grad and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def set_rates(optimizer: torch.optim.Optimizer, factor: Factor) -> None:
    """Bring every group to its share of the full rate, and one-cycle's momentum."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor.rate
        if factor.momentum is not None and "betas" in group:
            group["betas"] = (factor.momentum, group["betas"][1])
        elif factor.momentum is not None:
            group["momentum"] = factor.momentum
