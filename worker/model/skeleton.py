"""The structure of a torchvision model: its heads and blocks, without allocating weights."""

import difflib
import warnings
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from worker.errors import ConfigurationError, first_line

_MAX_NEAR = 20  # names considered, before they are sorted by similarity
IMAGENET_CLASSES = 1000
AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""Names of auxiliary classifiers, which are used in training only."""

# Containers whose children are separate blocks; any other module is one block.
TRUNKS = (
    *("features", "encoder", "encoder.layers", "blocks", "layers", "trunk_output"),
    *("classifier", "heads"),
)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)


def known_models() -> list[str]:
    """Return the names of torchvision's classification models."""
    names: list[str] = models.list_models(module=models)
    return names


def nearest_models(name: str) -> list[str]:
    """Return the models with similar names, the most similar first, then in alphabetical order."""

    def distance(known: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, name, known).ratio(), known

    return sorted(difflib.get_close_matches(name, known_models(), n=_MAX_NEAR), key=distance)


def require_known(name: str) -> None:
    """Raise `ConfigurationError`, suggesting similar names, if torchvision has no such model."""
    known = known_models()
    if name not in known:
        near = nearest_models(name)[:3]
        several = ", ".join(near[:-1])
        names = f"{several} or {near[-1]}" if several else "".join(near)
        remedy = f"did you mean {names}?" if near else "`worker models` lists all"
        raise ConfigurationError(f"model.backbone: no model {name!r}; {remedy}")


def construct(name: str, image_size: int, classes: int = IMAGENET_CLASSES) -> nn.Module:
    """Construct a torchvision model with random weights.

    Args:
        name: The name in torchvision.
        image_size: Side of the images, in pixels.
        classes: The number of classes.

    Returns:
        The model.
    """
    options = {"num_classes": classes, **family_options(name, image_size)}
    # Unlike the others, it changes nothing in a model whose weights are replaced.
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def family_options(name: str, image_size: int) -> dict[str, Any]:
    """Return the arguments that a model's family needs besides the number of classes."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        return {"input_size": (image_size, image_size)}
    if name in ("googlenet", "inception_v3"):
        # Their weights were trained on inputs in [-1, 1], but their preset has ImageNet's mean and
        # std.
        return {"aux_logits": True, "transform_input": True}
    return {}


@cache
def skeleton(name: str, image_size: int) -> nn.Module:
    """Return a torchvision model on the meta device.

    Its tensors have shapes but no memory. The result is cached and must not be modified.
    """
    with _WithoutMemory():
        return construct(name, image_size).to("meta")


def require_size(name: str, image_size: int, own_size: int) -> None:
    """Refuse an image size at which a model cannot be trained.

    Args:
        name: The name in torchvision.
        image_size: Side of the images, in pixels.
        own_size: Side of the images that its pretrained weights expect, in pixels.

    Raises:
        ConfigurationError: If the model cannot take images of that size.
    """
    reason = _objection(name, image_size)
    if reason:
        raise ConfigurationError(
            f"data.image_size: {name} cannot be trained at {image_size} pixels; "
            f"its own size is {own_size} (error: {reason})"
        )


def require_train_size(name: str, evaluated: int, trained: int) -> None:
    """Refuse a training size that a model built for another size cannot take.

    Args:
        name: The name of the model.
        evaluated: Side of the images that it is built for, in pixels.
        trained: Side of the training images, in pixels.

    Raises:
        ConfigurationError: If it cannot take them.
    """
    reason = _objection(name, evaluated, trained)
    if reason:
        raise ConfigurationError(
            f"data.image_size.train: {name} built for {evaluated} pixels cannot be trained at "
            f"{trained} (error: {reason}); set one size"
        )


@cache
def _objection(name: str, image_size: int, trained: int | None = None) -> str:
    """Return the error that images cause in the model; empty if there is none.

    Args:
        name: The name of the model.
        image_size: The side that it is built for, in pixels.
        trained: The side of the images, if it differs from that.
    """
    side = trained or image_size
    try:
        model = skeleton(name, image_size).train()
        # Two images, as BatchNorm refuses a single value per channel.
        model(torch.empty(2, 3, side, side, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        return first_line(error).rstrip("!.") or type(error).__name__
    return ""


def find_heads(model: nn.Module) -> tuple[str, ...]:
    """Return dotted names of the layers that output ImageNet classes, the main head last.

    Each is a Linear, or SqueezeNet's 1x1 convolution; there is more than one if the model has
    auxiliary classifiers.
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
    """Return the module names of each stage between input and head, in forward order.

    This is the order in which torchvision registers them; a norm belongs to the block before it, an
    auxiliary classifier to the last block. Parameters outside these modules (ViT's class token)
    belong to the first block and are not listed.
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
    """Mode that puts weights on the meta device, but not tensors that constructors compute with.

    RegNet and Swin compute their widths and drop rates with tensors, so the default device cannot
    be meta.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        # torch's layers allocate their weights with `torch.empty`, then initialize them in place.
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
