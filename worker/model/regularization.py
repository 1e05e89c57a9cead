"""Dropout and stochastic depth of a torchvision model, set after it is built."""

from torch import nn
from torchvision.ops import StochasticDepth

from worker.errors import ConfigurationError


def set_dropout(name: str, model: nn.Module, rate: float) -> None:
    """Set the rate of all dropout layers, as the family's `dropout` argument would.

    Args:
        name: The name of the model, for the message.
        model: The model.
        rate: The rate, from 0 to 1.

    Raises:
        ConfigurationError: If the model has no dropout layers.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise ConfigurationError(f"model.dropout: {name} has no dropout layers; remove it")
    for layer in layers:
        layer.p = rate


def set_stochastic_depth(name: str, model: nn.Module, rate: float) -> None:
    """Set the rate of stochastic depth (Huang et al., 2016), which grows linearly with depth.

    Args:
        name: The name of the model, for the message.
        model: The model.
        rate: The rate of the last block, from 0 to 1; the first block is never left out.

    Raises:
        ConfigurationError: If the model has no stochastic depth.
    """
    layers = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    if not layers:
        raise ConfigurationError(
            f"model.stochastic_depth: {name} has none; remove it (EfficientNet, ConvNeXt, Swin and "
            "MaxViT have)"
        )
    for number, layer in enumerate(layers):
        # As torchvision does: block i of n gets rate * i / n.
        layer.p = rate * number / len(layers)
