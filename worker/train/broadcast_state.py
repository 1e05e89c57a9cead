"""Broadcast, to all ranks, of the state that rank 0 has read from the store."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from worker.model.learner import Learner


@dataclass(frozen=True, kw_only=True)
class _TensorEntry:
    """A tensor of the optimizer's state: its parameter, its kind, its shape and its dtype."""

    parameter: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def shared(value: Any) -> Any:
    """Broadcast a small value from rank 0 and return it on every rank."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def share_learner(learner: Learner) -> None:
    """Broadcast the state of rank 0's learner to all ranks, over the links between devices.

    Covers the weights, their moving average, the optimizer's state and the loss scale. Only one
    rank reads them, as the store is slower and shared.
    """
    if dist.get_world_size() == 1:
        return
    for tensor in learner.model.state_dict().values():
        dist.broadcast(tensor, src=0)
    if learner.average:
        for tensor in learner.average.state_dict().values():
            dist.broadcast(tensor, src=0)
    scaler = shared(learner.scaler.state_dict())
    # Empty unless scaling is enabled, that is, in fp16.
    if scaler:
        learner.scaler.load_state_dict(scaler)
    _share_optimizer(learner)


def _share_optimizer(learner: Learner) -> None:
    parameters = dict(learner.model.named_parameters())
    state = learner.optimizer.state
    own = [
        _TensorEntry(parameter=name, kind=kind, shape=tuple(tensor.shape), dtype=tensor.dtype)
        for name, parameter in parameters.items()
        for kind, tensor in state.get(parameter, {}).items()
        if isinstance(tensor, Tensor)
    ]
    entries: list[_TensorEntry] = shared(own)
    leads = dist.get_rank() == 0
    # Only rank 0 knows which parameters have state: it is created in their first step, so those
    # that have been frozen until now have none.
    if not leads:
        state.clear()
    for entry in entries:
        parameter = parameters[entry.parameter]
        if not leads:
            state[parameter][entry.kind] = _like(parameter, entry)
        dist.broadcast(state[parameter][entry.kind], src=0)


def _like(parameter: Tensor, entry: _TensorEntry) -> Tensor:
    """Allocate a tensor in the memory format of its parameter, as `restore_snapshot` does."""
    if entry.shape == tuple(parameter.shape):
        # A broadcast copies memory as it is laid out, so the strides must match rank 0's tensor.
        return torch.empty_like(parameter, dtype=entry.dtype, requires_grad=False)
    return torch.empty(entry.shape, dtype=entry.dtype, device=parameter.device)
