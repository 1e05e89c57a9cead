"""Training loss of each image, and class weights."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worker.data.epoch_plan import Ids
from worker.errors import ConfigurationError
from worker.learn.step_inputs import Inputs
from worker.manifest import Train


@dataclass(frozen=True)
class Criterion:
    """Cross-entropy with the options that the manifest sets."""

    label_smoothing: float = 0.0
    """Share of the label that is spread over all classes."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class; None for equal weights."""
    auxiliary_weight: float = 0.0
    """Weight of the loss of an auxiliary head."""

    def losses(self, logits: Tensor, auxiliary: Sequence[Tensor], inputs: Inputs) -> Tensor:
        """Return the loss of each image.

        Args:
            logits: Logits, [N, classes].
            auxiliary: Logits of auxiliary heads, each [N, classes].
            inputs: Labels, blend and weights of the images.

        Returns:
            float32 [N]; 0 for a placeholder image.
        """
        losses = self._blended(logits, inputs)
        for other in auxiliary:
            losses = losses + self.auxiliary_weight * self._blended(other, inputs)
        return losses * inputs.weights

    def _blended(self, logits: Tensor, inputs: Inputs) -> Tensor:
        losses = self._plain(logits, inputs.labels)
        # Cross-entropy is linear in the target, so blending losses equals blending labels (Zhang et
        # al., 2017).
        if inputs.own < 1:
            others = self._plain(logits, inputs.partners)
            losses = losses * inputs.own + others * (1 - inputs.own)
        return losses

    def _plain(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = self.class_weights
        weight = None if weights is None else _on_device(weights, logits.device)
        return F.cross_entropy(
            logits,
            labels,
            weight=weight,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )


@functools.cache
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the weights on the device, cached, as a copy per loss would stall the host."""
    return torch.tensor(weights, device=device)


def class_weights(
    train: Train, classes: Sequence[str], counts_of: Callable[[], Ids]
) -> tuple[float, ...] | None:
    """Return the weight of each class.

    A `balanced` weight is samples / (classes x samples of the class), with a mean of 1 over the
    samples; classes without samples are not counted.

    Args:
        train: The training settings.
        classes: Names of the classes.
        counts_of: Returns how many images of each class an epoch trains on.

    Returns:
        Weights by class; None if none are requested.

    Raises:
        ConfigurationError: If a class does not exist, or if all weights are 0.
    """
    wanted = train.class_weights
    if wanted is None:
        return None
    if isinstance(wanted, Mapping):
        unknown = [name for name in wanted if name not in classes]
        if unknown:
            raise ConfigurationError(
                f"train.class_weights: no class {unknown[0]!r}; there are {', '.join(classes[:9])}"
            )
        if not any(wanted.get(name, 1.0) for name in classes):
            raise ConfigurationError("train.class_weights: all are 0; set at least one above 0")
        return tuple(wanted.get(name, 1.0) for name in classes)
    counts = counts_of()
    weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    weights[counts == 0] = 0  # with label smoothing, the weight of every class enters the loss
    return tuple(weights.tolist())
