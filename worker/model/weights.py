"""Pretrained weights from storage or torchvision, into a backbone with a new head.

Nothing is ever unpickled: safetensors, or `torch.load(weights_only=True)`.
"""

import io
import urllib.error
from collections.abc import Iterable

import safetensors.torch
import torch
from torch import Tensor
from torchvision import models

from worker.errors import ConfigurationError, InfrastructureError
from worker.model.backbone import Backbone
from worker.store import ObjectMissing, read_uri

_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_SHOWN = 3


def load_pretrained(backbone: Backbone, weights: str) -> int:
    """Load `weights` into everything but the head; returns the number of tensors loaded.

    `weights` is an address of a safetensors or state-dict file, or a torchvision weights name. A
    head in it is left out, `module.` prefixes are stripped. Raises `ConfigurationError` where
    names or shapes do not fit, naming them.
    """
    if "/" in weights or weights.endswith(_FILE_SUFFIXES):
        try:
            state = _decode(read_uri(weights), weights)
        except ObjectMissing as error:
            raise ConfigurationError(f"model.weights: {error}; check the address") from None
    else:
        state = _from_torchvision(backbone.name, weights)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    head = f"{backbone.head}."
    given = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
    wanted = {
        name: tensor
        for name, tensor in backbone.model.state_dict().items()
        if not name.startswith(head)
    }
    misfits = _misfits(given, wanted)
    if misfits:
        raise ConfigurationError(
            f"model.weights: {weights} does not fit {backbone.name}: {'; '.join(misfits)}"
        )
    backbone.model.load_state_dict(given, strict=False)
    return len(given)


def _misfits(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {list(given[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    # Old state dicts lack the step counters of BatchNorm, which nothing depends on.
    missing = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    found = {"missing": missing, "unexpected": unexpected, "misshapen": shapes}
    return [f"{len(names)} {kind} ({_some(names)})" for kind, names in found.items() if names]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _decode(data: bytes, uri: str) -> dict[str, Tensor]:
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        raise ConfigurationError(
            f"model.weights: {uri}: neither safetensors nor a state dict ({type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ConfigurationError(
            f"model.weights: {uri}: not a plain state dict; save `model.state_dict()`"
        )
    return state


def _from_torchvision(backbone: str, name: str) -> dict[str, Tensor]:
    known = models.get_model_weights(backbone)
    if name not in known.__members__:
        raise ConfigurationError(
            f"model.weights: {name!r} is neither an address nor weights of {backbone}; "
            f"torchvision has {', '.join(known.__members__)}"
        )
    try:
        state: dict[str, Tensor] = known[name].get_state_dict(progress=False, weights_only=True)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise InfrastructureError(
            f"model.weights: {name} of {backbone} cannot be downloaded ({error}); "
            "put the file into your store and give its address"
        ) from None
    return state
