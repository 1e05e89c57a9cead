"""The training state as parts of a checkpoint; optimiser state is keyed by parameter name.

No random state is kept: every draw is keyed by (seed, step, rank) or (seed, epoch, sample).
"""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def take_snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> dict[str, bytes]:
    """The parts, by object name; `state` is JSON data that travels along."""
    return {
        _MODEL: encode_model(model),
        _OPTIMIZER: safetensors.torch.save(_optimizer_tensors(model, optimizer)),
        _STATE: json.dumps(state).encode(),
    }


def encode_model(model: nn.Module) -> bytes:
    """The model's state dict as safetensors."""
    return safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()})


def read_state(parts: Mapping[str, bytes]) -> dict[str, Any]:
    """The `state` that a snapshot was taken with."""
    state: dict[str, Any] = json.loads(parts[_STATE])
    return state


def restore_snapshot(
    parts: Mapping[str, bytes], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put model and optimiser back; a parameter without state (frozen until now) starts afresh."""
    model.load_state_dict(safetensors.torch.load(parts[_MODEL]))
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = {names[parameter]: parameter for parameter in order}
    kept: dict[str, dict[str, Tensor]] = {}
    for key, tensor in safetensors.torch.load(parts[_OPTIMIZER]).items():
        kind, _, name = key.partition("/")
        if name in parameters:
            kept.setdefault(name, {})[kind] = _laid_out_as(parameters[name], tensor)
    state = {i: kept[names[p]] for i, p in enumerate(order) if names[p] in kept}
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the memory format of its parameter, as the optimiser would have made it."""
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, device="cpu", dtype=tensor.dtype).copy_(tensor)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}/{names[parameter]}": value.contiguous()
        for group in optimizer.param_groups
        for parameter in group["params"]
        for kind, value in optimizer.state[parameter].items()
    }
