"""A torchvision model's structure without its memory: where its heads are, and its blocks."""

import difflib
import warnings
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from worker.errors import ConfigurationError, first_line

_MAX_NEAR = 20
IMAGENET_CLASSES = 1000
AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""Names of auxiliary classifiers; they take part in training only."""

# Containers whose children are blocks of their own; what is not listed is one block.
TRUNKS = (
    *("features", "encoder", "encoder.layers", "blocks", "layers", "trunk_output"),
    *("classifier", "heads"),
)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)


def known_models() -> list[str]:
    """The classification models of torchvision."""
    names: list[str] = models.list_models(module=models)
    return names


def nearest_models(name: str) -> list[str]:
    """Return the models with a similar name, the most similar first; of equals, by name."""

    def distance(known: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, name, known).ratio(), known

    return sorted(difflib.get_close_matches(name, known_models(), n=_MAX_NEAR), key=distance)


def require_known(name: str) -> None:
    """Raise `ConfigurationError` with the nearest names for one that torchvision does not have."""
    known = known_models()
    if name not in known:
        near = nearest_models(name)[:3]
        remedy = f"did you mean {' or '.join(near)}?" if near else "`worker models` lists them"
        raise ConfigurationError(f"model.backbone: no model {name!r}; {remedy}")


def construct(name: str, image_size: int, classes: int = IMAGENET_CLASSES) -> nn.Module:
    """Construct a torchvision model at random weights.

    Args:
        name: The name in torchvision.
        image_size: Side of the images, in pixels.
        classes: The number of classes.

    Returns:
        The model.
    """
    options: dict[str, Any] = {"num_classes": classes}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    elif name in ("googlenet", "inception_v3"):
        # Their weights were trained on [-1, 1], while their preset says ImageNet's mean and std.
        options |= {"aux_logits": True, "init_weights": True, "transform_input": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = models.get_model(name, weights=None, **options)
    return model


@cache
def skeleton(name: str, image_size: int) -> nn.Module:
    """The model on the meta device: shapes without memory. Not to be changed."""
    with _WithoutMemory():
        return construct(name, image_size).to("meta")


def require_size(name: str, image_size: int, own_size: int) -> None:
    """Refuse images that a model cannot be trained on.

    Args:
        name: The name in torchvision.
        image_size: Side of the images, in pixels.
        own_size: Side of the images of its own weights, in pixels.

    Raises:
        ConfigurationError: If they are too small.
    """
    reason = _objection(name, image_size)
    if reason:
        raise ConfigurationError(
            f"data.image_size: {name} cannot be trained at {image_size} pixels; "
            f"its own size is {own_size} ({reason})"
        )


@cache
def _objection(name: str, image_size: int) -> str:
    """Return what the model says to images of this side; nothing if it takes them."""
    try:
        model = skeleton(name, image_size).train()
        model(torch.empty(2, 3, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        return first_line(error).rstrip("!.") or type(error).__name__
    return ""


def find_heads(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the layers with one output per ImageNet class, that of the main head last.

    A Linear, or SqueezeNet's 1x1 convolution; more than one where there are auxiliary classifiers.
    """
    heads = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == IMAGENET_CLASSES
    ]
    return tuple(sorted(heads, key=lambda path: not is_auxiliary(path)))


def is_auxiliary(path: str) -> bool:
    """Return whether a parameter or module is part of an auxiliary classifier."""
    return path.split(".")[0] in AUXILIARY


def find_blocks(model: nn.Module, heads: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The stages between image and head as the module names of each, the first one first.

    In the order in which an image passes them, as torchvision registers them; a norm belongs to
    what comes before it, an auxiliary classifier to the last block. Loose parameters (ViT's class
    token) belong to the first block and are not named.
    """
    blocks: list[list[str]] = []
    auxiliary: list[str] = []

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = prefix + name
            if path in heads or not any(True for _ in child.parameters()):
                continue
            if path in TRUNKS:
                walk(child, f"{path}.")
            elif is_auxiliary(path):
                auxiliary.append(path)
            elif isinstance(child, _NORMS) and blocks:
                blocks[-1].append(path)
            else:
                blocks.append([path])

    walk(model, "")
    blocks[-1] += auxiliary
    return tuple(map(tuple, blocks))


class _WithoutMemory(TorchFunctionMode):
    """Puts what layers allocate on the meta device; what constructors compute with stays real.

    (RegNet and Swin compute their widths and drop rates with tensors, so the device as a whole
    cannot be meta.)
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
