"""The training state as parts of a checkpoint; optimiser state is keyed by parameter name.

No random state is kept: every draw is keyed by (seed, step, rank) or (seed, epoch, sample). Nor is
any of the schedule or of what is frozen: both are functions of the step.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.checkpoint.host import HostCopy, Place, room_for
from worker.checkpoint.tensors import Stream, read_tensors, stream_bytes, stream_tensors
from worker.manifest import Manifest
from worker.model.groups import RateGroup
from worker.model.learner import Learner
from worker.model.weights import load_tensors

_STATE = "state.json"
_MODEL, _AVERAGE, _OPTIMIZER = "model", "average", "optimizer"
_SUFFIX = ".safetensors"
PARTS = (_STATE, *(f"{kind}{_SUFFIX}" for kind in (_MODEL, _AVERAGE, _OPTIMIZER)))
"""All that a checkpoint may hold, in the order in which it is written."""
_SCALER = "scaler"
_ADAM, _SGD = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)


@dataclass(frozen=True)
class Snapshot:
    """A training state: JSON text, and where the tensors of each part lie in a `HostCopy`."""

    state: bytes
    tensors: Mapping[str, Mapping[str, Place]]

    def parts(self, host: HostCopy) -> dict[str, Stream]:
        """The objects of a checkpoint by name, to be written before `host` takes the next copy."""
        parts = {_STATE: stream_bytes(self.state)}
        for kind, places in self.tensors.items():
            copies = {name: host.at(place) for name, place in places.items()}
            parts[f"{kind}{_SUFFIX}"] = stream_tensors(copies)
        return parts


def room_for_training(model: nn.Module, groups: Sequence[RateGroup], manifest: Manifest) -> int:
    """Return the most bytes that the training state of a model takes up in a `HostCopy`."""
    scalar = room_for(torch.zeros(()))
    weights = sum(map(room_for, model.state_dict().values()))
    moments = 1 if manifest.optimizer.name == "sgd" else 2
    parameters = dict(model.named_parameters())
    trained = [n for group in groups if group.release is not None for n in group.parameters]
    optimizer = sum(moments * room_for(parameters[name]) + scalar for name in trained)
    return weights + optimizer + (0 if manifest.train.ema is None else weights + scalar)


def take_snapshot(learner: Learner, host: HostCopy, state: Mapping[str, Any]) -> Snapshot:
    """Copy the training state to `host`; `state` is JSON data that travels along."""
    kinds = {_MODEL: learner.model.state_dict()}
    if learner.average:
        kinds[_AVERAGE] = learner.average.state_dict()
    kinds[_OPTIMIZER] = _optimizer_tensors(learner)
    places = host.take(
        {(kind, name): t for kind, tensors in kinds.items() for name, t in tensors.items()}
    )
    text = json.dumps({**state, _SCALER: learner.scaler.state_dict()})
    tensors = {kind: {name: places[kind, name] for name in kinds[kind]} for kind in kinds}
    return Snapshot(text.encode(), tensors)


def stream_model(model: nn.Module) -> Stream:
    """The model's state dict as a safetensors file."""
    return stream_tensors(model.state_dict())


def read_state(parts: Mapping[str, bytearray]) -> dict[str, Any]:
    """The `state` that a snapshot was taken with."""
    state: dict[str, Any] = json.loads(parts[_STATE])
    del state[_SCALER]
    return state


def restore_snapshot(parts: Mapping[str, bytearray], learner: Learner) -> None:
    """Put everything back; a parameter without optimiser state (frozen until now) starts afresh.

    A moving average that was asked for since starts from the model. Raises `ValueError` before
    anything is changed if a part is no file of tensors.
    """
    tensors, optimizer = _load(parts, _MODEL), _load(parts, _OPTIMIZER)
    average = _load(parts, _AVERAGE) if f"{_AVERAGE}{_SUFFIX}" in parts else None
    scaler = json.loads(parts[_STATE])[_SCALER]
    load_tensors(learner.model, tensors)
    if learner.average and average:
        load_tensors(learner.average, average)
    elif learner.average:
        load_tensors(learner.average.module, tensors)
    if scaler:
        learner.scaler.load_state_dict(scaler)
    _restore_optimizer(learner, optimizer)


def restore_result(parts: Mapping[str, bytearray], learner: Learner) -> None:
    """Put back only what was evaluated: the average, or the model where none was asked for then."""
    if f"{_AVERAGE}{_SUFFIX}" in parts:
        tensors = _load(parts, _AVERAGE).items()
        prefix = "module."
        inner = {n.removeprefix(prefix): t for n, t in tensors if n.startswith(prefix)}
        load_tensors(learner.result, inner)
    else:
        load_tensors(learner.result, _load(parts, _MODEL))


def _load(parts: Mapping[str, bytearray], kind: str) -> dict[str, Tensor]:
    return read_tensors(parts[f"{kind}{_SUFFIX}"])


def _restore_optimizer(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    optimizer = learner.optimizer
    # Another optimiser than the one that wrote this starts afresh.
    kinds = _SGD if isinstance(optimizer, torch.optim.SGD) else _ADAM
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = {names[parameter]: parameter for parameter in order}
    kept: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if name in parameters and kind in kinds:
            kept.setdefault(name, {})[kind] = _laid_out_as(parameters[name], tensor)
    if kinds is _SGD:
        _fill_momentum(optimizer, names, kept)
    state = {i: kept[names[p]] for i, p in enumerate(order) if names[p] in kept}
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _fill_momentum(
    optimizer: torch.optim.Optimizer,
    names: Mapping[nn.Parameter, str],
    kept: dict[str, dict[str, Tensor]],
) -> None:
    """Zeros for what lacks a buffer beside others that have one, as after a change of groups.

    The fused kernel takes a group with all buffers or none; a first step from zeros is the same.
    """
    for group in optimizer.param_groups:
        own = [(names[parameter], parameter) for parameter in group["params"]]
        if any(name in kept for name, _ in own):
            for name, parameter in own:
                kept.setdefault(name, {"momentum_buffer": torch.zeros_like(parameter)})


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy beside its parameter in its memory format, as the optimizer would have made it."""
    if tensor.shape != parameter.shape:
        return tensor.clone()
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _optimizer_tensors(learner: Learner) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    return {
        f"{kind}/{names[parameter]}": value
        for group in learner.optimizer.param_groups
        for parameter in group["params"]
        for kind, value in learner.optimizer.state[parameter].items()
        if value is not None
    }
