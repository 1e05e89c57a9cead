"""The optimizer for the rate groups, and the freezing of layers."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from worker.manifest import Optimizer
from worker.model.rate_groups import RateGroup
from worker.model.schedule import Factor

_MOMENTUM = 0.9


def freeze_at(model: nn.Module, groups: Sequence[RateGroup], step: int) -> None:
    """Freeze and unfreeze the layers of a model as a step requires.

    Frozen layers take no part in the backward pass and are in evaluation mode, including dropout
    and stochastic depth; a BatchNorm whose group keeps its statistics is in evaluation mode, too.

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
    # Start from training mode everywhere: layers frozen so far may be released at this step.
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        frozen = own and not any(parameter.requires_grad for parameter in own)
        if frozen or (isinstance(module, _BatchNorm) and own and still.issuperset(own)):
            module.eval()
        if isinstance(module, nn.Sequential):
            _rest_before_frozen(module)


def _rest_before_frozen(sequence: nn.Sequential) -> None:
    """Put parameterless layers, such as dropout, that precede a frozen one in evaluation mode."""
    # From back to front: the mode of a parameterless layer depends on the layer that follows.
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
    """Build an optimizer with one parameter group per rate group, in the same order.

    Rate groups that are never trained get none. The optimizer uses fused kernels.

    Args:
        model: The model.
        groups: Its rate groups.
        settings: The optimizer settings from the manifest.

    Returns:
        The optimizer; the `initial_lr` of a parameter group is its full rate.
    """
    parameters = dict(model.named_parameters())
    trained = [
        {
            "params": [parameters[name] for name in group.parameters],
            "lr": group.lr,
            "initial_lr": group.lr,
            "weight_decay": 0.0 if group.towards_start else group.weight_decay,
            "pull": group.weight_decay if group.towards_start else 0.0,
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
    """Create zero-filled momentum buffers for all parameters that SGD now trains.

    If the first step were skipped, the fused kernel would leave the buffers that it allocates
    uninitialized.
    """
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if parameter.requires_grad and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def set_rates(optimizer: torch.optim.Optimizer, factor: Factor) -> None:
    """Set every group's learning rate, and its momentum if the schedule sets one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor.rate
        # As in OneCycleLR, Adam's first beta takes the place of momentum.
        if factor.momentum is not None and "betas" in group:
            group["betas"] = (factor.momentum, group["betas"][1])
        elif factor.momentum is not None:
            group["momentum"] = factor.momentum
