"""The training state as parts of a checkpoint; optimizer state is keyed by parameter name.

No random state is kept: every draw is keyed by (seed, step, rank) or (seed, epoch, sample). The
schedule and the set of frozen parameters are not saved either: both are functions of the step.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from worker.checkpoint.commit import STATE_PART
from worker.checkpoint.host_copy import HostCopy, Place, room_for
from worker.checkpoint.tensor_files import TensorStream, read_tensors, stream_bytes, stream_tensors
from worker.manifest import Manifest
from worker.model.learner import Learner
from worker.model.pretrained_weights import load_tensors
from worker.model.rate_groups import RateGroup
from worker.store.json_records import StoredRecord

_MODEL, _AVERAGE, _OPTIMIZER = "model", "average", "optimizer"
_SUFFIX = ".safetensors"
_SCALER = "scaler"
_ADAM, _SGD = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)


class _Scaler(StoredRecord):
    """The state of fp16 loss scaling, with the fields of `GradScaler.state_dict`."""

    scale: Annotated[float, Field(gt=0)]
    growth_factor: Annotated[float, Field(gt=1)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(ge=1)]
    growth_tracker: Annotated[int, Field(ge=0, alias="_growth_tracker")]

    def as_torch(self) -> dict[str, Any]:
        """Return what `GradScaler.load_state_dict` takes."""
        return self.model_dump(by_alias=True)


class _ScalerHolder(StoredRecord):
    scaler: _Scaler | None

    @field_validator("scaler", mode="before")
    @classmethod
    def _none_if_empty(cls, value: Any) -> Any:
        # A disabled `GradScaler` has an empty state dict.
        return value or None


@dataclass(frozen=True)
class Snapshot:
    """A copy of the training state."""

    state: bytes
    """The non-tensor state, as JSON text."""
    tensors: Mapping[str, Mapping[str, Place]]
    """Locations of the tensors in the `HostCopy`, by checkpoint part and tensor name."""

    def parts(self, host: HostCopy) -> dict[str, TensorStream]:
        """Return the parts by name, to be written before `host` takes the next copy."""
        parts = {STATE_PART: stream_bytes(self.state)}
        for kind, places in self.tensors.items():
            copies = {name: host.at(place) for name, place in places.items()}
            parts[f"{kind}{_SUFFIX}"] = stream_tensors(copies)
        return parts


def room_for_training(model: nn.Module, groups: Sequence[RateGroup], manifest: Manifest) -> int:
    """Return an upper bound on the bytes that the training state takes up in a `HostCopy`.

    Args:
        model: The model.
        groups: Its rate groups, which determine which parameters have optimizer state.
        manifest: The manifest, which determines the optimizer and whether there is a moving
            average.

    Returns:
        The upper bound, in bytes.
    """
    scalar = room_for(torch.zeros(()))
    weights = sum(map(room_for, model.state_dict().values()))
    moments = 1 if manifest.optimizer.name == "sgd" else 2
    parameters = dict(model.named_parameters())
    # A group without a release step is never trained, so it never gets optimizer state.
    trained = [n for group in groups if group.release is not None for n in group.parameters]
    optimizer = sum(moments * room_for(parameters[name]) + scalar for name in trained)
    # A moving average has the tensors of the model and `n_averaged`, a scalar.
    return weights + optimizer + (0 if manifest.train.ema is None else weights + scalar)


def take_snapshot(learner: Learner, host: HostCopy, state: Mapping[str, Any]) -> Snapshot:
    """Copy the training state to host memory.

    Args:
        learner: The model with its optimizer, moving average and loss scaler.
        host: The memory to copy to.
        state: JSON data to store with the tensors.

    Returns:
        The copy; training may continue as soon as it is returned.
    """
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


def stream_model(model: nn.Module) -> TensorStream:
    """Return the model's state dict as a safetensors file."""
    return stream_tensors(model.state_dict())


def restore_snapshot(parts: Mapping[str, bytearray], learner: Learner) -> None:
    """Restore the whole training state from the parts of a checkpoint.

    A parameter for which the checkpoint has no optimizer state (frozen until now) starts without
    any. A moving average that was enabled after the checkpoint was saved starts from the model's
    weights.

    Raises `ValueError` before anything is changed if a part does not fit this learner.
    """
    tensors, optimizer = _load(parts, _MODEL), _load(parts, _OPTIMIZER)
    _require_fit(tensors, learner.model.state_dict(), _MODEL)
    average = _load(parts, _AVERAGE) if f"{_AVERAGE}{_SUFFIX}" in parts else None
    if learner.average and average:
        _require_fit(average, learner.average.state_dict(), _AVERAGE)
    scaler = _ScalerHolder.model_validate_json(bytes(parts[STATE_PART])).scaler
    # The last of the checks: from here on, the learner changes.
    kept = _fitting_optimizer(learner, optimizer)
    load_tensors(learner.model, tensors)
    if learner.average and average:
        load_tensors(learner.average, average)
    elif learner.average:
        load_tensors(learner.average.module, tensors)
    if scaler and learner.scaler.is_enabled():
        learner.scaler.load_state_dict(scaler.as_torch())
    _restore_optimizer(learner, kept)


def restore_result(parts: Mapping[str, bytearray], learner: Learner) -> None:
    """Restore only the weights that were evaluated.

    These are the moving average, or the model's own weights if there was no average.

    Raises `ValueError` before anything is changed if the part does not fit this model.
    """
    if f"{_AVERAGE}{_SUFFIX}" in parts:
        tensors = _load(parts, _AVERAGE).items()
        prefix = "module."
        # `AveragedModel` nests its copy of the model under `module`, beside `n_averaged`.
        inner = {n.removeprefix(prefix): t for n, t in tensors if n.startswith(prefix)}
    else:
        inner = _load(parts, _MODEL)
    _require_fit(inner, learner.result.state_dict(), "result")
    load_tensors(learner.result, inner)


def _require_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raise `ValueError` unless the tensors have the names, shapes and types that are wanted."""
    # Names that only one side has, whichever side that is.
    strange = sorted(found.keys() ^ wanted.keys())
    strange += [
        name
        for name, tensor in wanted.items()
        if name in found and (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype)
    ]
    if strange:
        raise ValueError(f"{what}: {strange[0]} does not match this model")


def _load(parts: Mapping[str, bytearray], kind: str) -> dict[str, Tensor]:
    return read_tensors(parts[f"{kind}{_SUFFIX}"])


def _fitting_optimizer(
    learner: Learner, tensors: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer state that this optimizer can use, by parameter and kind.

    If the state is that of another optimizer, this one starts from scratch. Raises `ValueError` if
    a tensor does not fit its parameter, or if only part of a parameter's state is there.
    """
    kinds = _kinds_of(learner.optimizer)
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    trained = [p for group in learner.optimizer.param_groups for p in group["params"]]
    parameters = {names[parameter]: parameter for parameter in trained}
    kept: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if name in parameters and kind in kinds:
            shape = torch.Size() if kind == "step" else parameters[name].shape
            if tensor.shape != shape or not tensor.is_floating_point():
                raise ValueError(f"{_OPTIMIZER}: {key} does not match this model")
            kept.setdefault(name, {})[kind] = _laid_out_as(parameters[name], tensor)
    for name, found in kept.items():
        if len(found) < len(kinds):
            raise ValueError(f"{_OPTIMIZER}: {name} lacks {min(set(kinds) - set(found))}")
    return kept


def _kinds_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    return _SGD if isinstance(optimizer, torch.optim.SGD) else _ADAM


def _restore_optimizer(learner: Learner, kept: dict[str, dict[str, Tensor]]) -> None:
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    optimizer = learner.optimizer
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if _kinds_of(optimizer) is _SGD:
        _fill_momentum(optimizer, names, kept)
    # As in `Optimizer.state_dict`, parameters are numbered across all groups, in order. The
    # groups keep their settings from the manifest.
    state = {i: kept[names[p]] for i, p in enumerate(order) if names[p] in kept}
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _fill_momentum(
    optimizer: torch.optim.Optimizer,
    names: Mapping[nn.Parameter, str],
    kept: dict[str, dict[str, Tensor]],
) -> None:
    """Give parameters that have no buffer a zero one if others in their group have buffers.

    Such a mixture arises when the groups change. The fused kernel needs buffers for all parameters
    of a group or for none; a first step from a zero buffer has the same effect as a first step
    without a buffer.
    """
    for group in optimizer.param_groups:
        own = [(names[parameter], parameter) for parameter in group["params"]]
        if any(name in kept for name, _ in own):
            for name, parameter in own:
                kept.setdefault(name, {"momentum_buffer": torch.zeros_like(parameter)})


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a copy in the layout of the optimizer: that of the parameter if the shapes match."""
    # Always a copy: `tensor` is a view, which would keep the bytes of the whole file in memory.
    # Only Adam's `step` has a shape of its own.
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
