"""Dropout and stochastic depth, as the families' own arguments would set them."""

import pytest
from torch import nn
from torchvision import models
from torchvision.ops import StochasticDepth

from worker.errors import ConfigurationError
from worker.model.regularization import set_dropout, set_stochastic_depth


def rates(model: nn.Module, kind: type[nn.Module]) -> list[float]:
    return [float(str(module.p)) for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "efficientnet_v2_s"])
def test_stochastic_depth_is_that_of_the_constructor(name: str) -> None:
    model = models.get_model(name, weights=None)
    set_stochastic_depth(name, model, 0.37)
    theirs = models.get_model(name, weights=None, stochastic_depth_prob=0.37)
    ours, expected = rates(model, StochasticDepth), rates(theirs, StochasticDepth)
    # Some families divide by the number of blocks, others by one less.
    assert ours == pytest.approx(expected, abs=0.37 / len(ours))
    assert ours == sorted(ours)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small", "vit_b_32", "alexnet"])
def test_dropout_is_that_of_the_constructor(name: str) -> None:
    model = models.get_model(name, weights=None)
    set_dropout(name, model, 0.37)
    assert rates(model, nn.Dropout) == rates(
        models.get_model(name, weights=None, dropout=0.37), nn.Dropout
    )


def test_a_model_without_is_refused() -> None:
    model = models.resnet18(weights=None)
    with pytest.raises(ConfigurationError, match="model.dropout: resnet18 has no dropout layers"):
        set_dropout("resnet18", model, 0.1)
    with pytest.raises(ConfigurationError, match="model.stochastic_depth: resnet18 has none"):
        set_stochastic_depth("resnet18", model, 0.1)
