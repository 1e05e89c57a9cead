"""Pretrained weights from storage or torchvision, into a backbone with a new head.

Nothing is ever unpickled: safetensors, or `torch.load(weights_only=True)`.
"""

import io
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from worker.errors import ConfigurationError, InfrastructureError
from worker.model.backbone import Backbone
from worker.model.skeleton import is_auxiliary
from worker.store import ObjectMissing, read_uri

log = logging.getLogger(__name__)

_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_SHOWN = 3
# What torchvision's own files call parameters that its models have renamed since.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)"), r"\1"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
# DistributedDataParallel, AveragedModel, torch.compile; and the counter of the second.
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
_COUNTER = "n_averaged"
_POSITIONS = "encoder.pos_embedding"


def load_pretrained(backbone: Backbone, weights: str) -> int:
    """Load `weights` into everything but the head; returns the number of tensors loaded.

    `weights` is an address of a safetensors or state-dict file, or a torchvision weights name. A
    head in it is left out, `module.` prefixes are stripped, a ViT's position embeddings are
    resized to the job's images. Auxiliary classifiers that it lacks start at random. Raises
    `ConfigurationError` where names or shapes do not fit, naming them.
    """
    if "/" in weights or weights.endswith(_FILE_SUFFIXES):
        try:
            state = _decode(read_uri(weights), weights)
        except ObjectMissing as error:
            raise ConfigurationError(f"model.weights: {error}; check the address") from None
    else:
        state = _from_torchvision(backbone.name, weights)
    heads = tuple(f"{head}." for head in backbone.heads)
    given = {name: tensor for name, tensor in _renamed(state).items() if not name.startswith(heads)}
    _require_sound(given, weights)
    _resize_positions(given, backbone)
    wanted = {
        name: tensor
        for name, tensor in backbone.model.state_dict().items()
        if not name.startswith(heads)
    }
    if backbone.auxiliary_weight and not any(map(is_auxiliary, given)):
        log.warning("%s has no auxiliary classifiers; they start at random", weights)
        wanted = {name: tensor for name, tensor in wanted.items() if not is_auxiliary(name)}
    misfits = _misfits(given, wanted)
    if misfits:
        raise ConfigurationError(
            f"model.weights: {weights} does not fit {backbone.name}: {'; '.join(misfits)}"
        )
    load_tensors(backbone.model, {**backbone.model.state_dict(), **given})
    return len(given)


def _require_sound(given: Mapping[str, Tensor], weights: str) -> None:
    """Raise `ConfigurationError` for tensors that no model computes with, naming the first."""
    for name, tensor in given.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_complex():
            kind = f"{tensor.layout}, {tensor.dtype} on {tensor.device.type}".replace("torch.", "")
            raise ConfigurationError(
                f"model.weights: {weights}: {name} is no plain tensor ({kind}); save plain ones"
            )
        if not tensor.isfinite().all():
            raise ConfigurationError(
                f"model.weights: {weights}: {name} holds NaN or infinite values; "
                "give the weights of an earlier step"
            )


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`model.load_state_dict` of tensors that come from a file, all of them by today's names.

    Files hold no versions, and modules that know older ones (MNASNet's) refuse a state without.
    """
    state = OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        if name == _COUNTER:
            continue
        name = _WRAPPED.sub("", name)
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        found[name] = tensor
    return found


def _resize_positions(given: dict[str, Tensor], backbone: Backbone) -> None:
    """Bring a ViT's position embeddings, [1, 1 + side * side, width], to the job's image size."""
    own = backbone.model.state_dict().get(_POSITIONS)
    if own is None or _POSITIONS not in given or given[_POSITIONS].shape == own.shape:
        return
    patch = backbone.model.patch_size
    batch, length, width = given[_POSITIONS].shape if given[_POSITIONS].ndim == 3 else (0, 0, 0)
    if batch == 1 and width == own.shape[2] and math.isqrt(length - 1) ** 2 == length - 1:
        resized = interpolate_embeddings(backbone.image_size, patch, OrderedDict(given))
        given[_POSITIONS] = resized[_POSITIONS]


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
    plain = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    )
    if not plain:
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
    except (OSError, RuntimeError) as error:  # torch.hub's word for a wrong hash is the latter
        raise InfrastructureError(
            f"model.weights: {name} of {backbone} cannot be downloaded ({error}); "
            "put the file into your store and give its address"
        ) from None
    return state
