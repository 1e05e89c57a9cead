"""Means of the weights of several models: model soups (Wortsman et al., 2022)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

State = Mapping[str, Tensor]


def weighted_mean(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of state dicts; counters and other integers come from the last one.

    Args:
        states: State dicts with the same names and shapes.
        weights: The weight of each, which add up to 1.
    """
    result = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            result[name] = last.clone()
            continue
        # In double precision: the mean of equal tensors is then the tensor itself.
        terms = [
            state[name].double() * weight for state, weight in zip(states, weights, strict=True)
        ]
        result[name] = torch.stack(terms).sum(0).to(last.dtype)
    return result


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a model keeps statistics that its weights alone do not determine."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


@contextmanager
def estimating_statistics(model: nn.Module) -> Iterator[Callable[[Tensor], None]]:
    """Estimate BatchNorm's statistics anew; yields a function that takes a batch of images.

    The statistics of averaged weights are not the average of the statistics (Izmailov et al.,
    2018). Each batch counts by its number of images. Everything else is in evaluation mode, before
    and after.
    """
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    seen = 0

    def add(images: Tensor) -> None:
        nonlocal seen
        seen += len(images)
        for layer in layers:
            layer.momentum = len(images) / seen
        with torch.no_grad():
            model(images)

    try:
        yield add
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum
        model.eval()
