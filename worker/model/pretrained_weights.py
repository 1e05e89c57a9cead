"""Loading of pretrained weights from storage or torchvision into a backbone with a new head."""

import hashlib
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from worker.errors import ConfigurationError, InfrastructureError
from worker.layout import CARD_NAME, WEIGHTS_NAME
from worker.logs import count
from worker.model.backbone import Backbone
from worker.model.foreign_weights import read_state, unwrapped
from worker.model.model_card import read_card
from worker.model.skeleton import is_auxiliary
from worker.store import ObjectMissing, open_store, read_uri

log = logging.getLogger(__name__)

_SHOWN = 3
# Parameter names in torchvision's own files that have since changed in its models.
_RENAMED = (
    # DenseNet: `norm.1` became `norm1`. ViT: the MLP became a Sequential, with dropout in between.
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)"), r"\1"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
_POSITIONS = "encoder.pos_embedding"


def load_pretrained(backbone: Backbone, weights: str) -> int:
    """Load `weights` into everything but the head; return the number of tensors loaded.

    `weights` is the address of a file (see `foreign_weights`) or the name of torchvision weights. A
    head in the file is left out, as are wrapper prefixes such as `module.`, and a ViT's
    position embeddings are resized to fit the job's images. Auxiliary classifiers that the file
    lacks are randomly initialized. Raises `ConfigurationError` if names or shapes do not fit,
    naming them.
    """
    inside = ""
    if "/" in weights or "." in weights:  # torchvision's weights names contain neither
        try:
            if weights.endswith("/"):
                file = weights.removesuffix("final/") + "final/model.safetensors"
                raise ConfigurationError(
                    f"{weights}: names a folder; the weights of a finished job are {file}"
                )
            data = read_uri(weights)
        except ObjectMissing as error:
            raise ConfigurationError(f"model.weights: {error}; check the address") from None
        except ConfigurationError as error:
            raise ConfigurationError(f"model.weights: {error}") from None
        _require_described(data, weights)
        state, inside = read_state(data, weights)
    else:
        state = _from_torchvision(backbone.name, weights)
    heads = tuple(f"{head}." for head in backbone.heads)
    own = backbone.model.state_dict()
    given = {
        name: tensor
        for name, tensor in _renamed(unwrapped(state, own)).items()
        if not name.startswith(heads)
    }
    _require_sound(given, weights)
    _resize_positions(given, backbone)
    wanted = {name: tensor for name, tensor in own.items() if not name.startswith(heads)}
    if backbone.auxiliary_weight and not any(map(is_auxiliary, given)):
        log.warning("%s has no auxiliary classifiers; they are randomly initialized", weights)
        wanted = {name: tensor for name, tensor in wanted.items() if not is_auxiliary(name)}
    misfits = _misfits(given, wanted)
    if misfits:
        holds = f"{f'the key {inside} with ' if inside else ''}{count(len(given), 'tensor')}"
        raise ConfigurationError(
            f"model.weights: {weights} holds {holds} but does not fit {backbone.name}: "
            f"{'; '.join(misfits)}"
        )
    if inside:
        log.info("%s: loading the weights under its key %s", weights, inside)
    load_tensors(backbone.model, {**own, **given})
    return len(given)


def digest_of_weights(backbone: Backbone) -> str:
    """Return the SHA-256 digest of all of a model's state but the heads."""
    heads = tuple(f"{head}." for head in backbone.heads)
    digest = hashlib.sha256()
    for name, tensor in backbone.model.state_dict().items():
        if not name.startswith(heads):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _require_described(data: bytes, weights: str) -> None:
    """Raise `ConfigurationError` if a model written by a job does not match the card beside it."""
    folder, _, name = weights.rpartition("/")
    if name != WEIGHTS_NAME or not folder:
        return
    try:
        card = read_card(open_store(folder))
    except ConfigurationError:  # already reported by `preset_beside` if a job wrote this model
        return
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise ConfigurationError(
            f"model.weights: {weights} is not what the {CARD_NAME} beside it describes; copy the "
            "folder again"
        )


def _require_sound(given: Mapping[str, Tensor], weights: str) -> None:
    """Raise `ConfigurationError` for tensors that no model can use, naming the first."""
    for name, tensor in given.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_complex():
            kind = f"{tensor.layout}, {tensor.dtype} on {tensor.device.type}".replace("torch.", "")
            raise ConfigurationError(
                f"model.weights: {weights}: {name} is not a plain dense tensor ({kind}); "
                "save plain dense tensors"
            )
        if not tensor.isfinite().all():
            raise ConfigurationError(
                f"model.weights: {weights}: {name} holds NaN or infinite values; "
                "use the weights of an earlier step"
            )


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors from a file into a model; their names must be those the model uses now.

    Files hold no version metadata, and modules with versioned state (MNASNet's) reject a state dict
    without it.
    """
    state = OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        found[name] = tensor
    return found


def _resize_positions(given: dict[str, Tensor], backbone: Backbone) -> None:
    """Resize a ViT's position embeddings, [1, 1 + side * side, width], to the job's image size."""
    own = backbone.model.state_dict().get(_POSITIONS)
    if own is None or _POSITIONS not in given or given[_POSITIONS].shape == own.shape:
        return
    patch = backbone.model.patch_size
    # One position for the class token, then a square grid of patches. Other shapes are left as they
    # are, and reported as misfits.
    batch, length, width = given[_POSITIONS].shape if given[_POSITIONS].ndim == 3 else (0, 0, 0)
    side = math.isqrt(max(0, length - 1))
    if batch == 1 and width == own.shape[2] and side and side**2 == length - 1:
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
    found = {"missing": missing, "unexpected": unexpected, "of the wrong shape": shapes}
    return [f"{len(names)} {kind} ({_some(names)})" for kind, names in found.items() if names]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _from_torchvision(backbone: str, name: str) -> dict[str, Tensor]:
    known = models.get_model_weights(backbone)
    if name not in known.__members__:
        raise ConfigurationError(
            f"model.weights: {name!r} is neither an address nor weights of {backbone}; "
            f"torchvision has {', '.join(known.__members__)}"
        )
    try:
        state: dict[str, Tensor] = known[name].get_state_dict(progress=False, weights_only=True)
    except (OSError, RuntimeError) as error:  # torch.hub raises RuntimeError on a hash mismatch
        raise InfrastructureError(
            f"model.weights: {name} of {backbone} cannot be downloaded ({error}); "
            "upload the file to your store and specify its address"
        ) from None
    return state
