"""Class weights and class balance."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.learners import manifest_of
from worker.errors import ConfigurationError
from worker.learn.loss import Criterion, class_weights
from worker.learn.step_inputs import Inputs


def test_class_weights_and_balance() -> None:
    labels = np.array([0, 0, 0, 1], dtype=np.int32)
    counts = np.array([3, 1])
    balanced = manifest_of([{"match": "*"}], {"class_weights": "balanced"}).train
    weights = class_weights(balanced, ["a", "b"], lambda: counts)
    assert weights == pytest.approx((2 / 3, 2.0))
    gaps = class_weights(balanced, ["none", "a", "none", "b"], lambda: np.array([0, 3, 0, 1]))
    # A weight above 0 would enter the loss of every image through label smoothing.
    assert gaps == pytest.approx((0.0, 2 / 3, 0.0, 2.0))
    named = manifest_of([{"match": "*"}], {"class_weights": {"b": 3.0}}).train
    assert class_weights(named, ["a", "b"], lambda: counts) == (1.0, 3.0)
    with pytest.raises(ConfigurationError, match="train.class_weights: no class 'b'; there are a"):
        class_weights(named, ["a"], lambda: counts)
    logits, numbers = torch.randn(4, 2), torch.from_numpy(labels).long()
    inputs = Inputs(
        images=torch.zeros(4, 3, 8, 8),
        labels=numbers,
        partners=numbers,
        weights=torch.ones(4),
        own=1.0,
        count=4,
    )
    ours = Criterion(0.1, (1.0, 3.0)).losses(logits, [], inputs)
    theirs = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]), reduction="none", label_smoothing=0.1)
    assert torch.allclose(ours, theirs(logits, numbers))
