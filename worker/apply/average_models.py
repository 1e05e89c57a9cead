"""The mean of several finished models, as a finished model."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import safetensors.torch
import torch

from worker.data.batch_requests import Request
from worker.data.epoch_plan import Ids
from worker.data.loader import Batch
from worker.errors import ConfigurationError
from worker.job.evaluation_feed import EvaluationFeed
from worker.job.loaders import Loaders
from worker.layout import CARD_NAME, FINAL, WEIGHTS_NAME
from worker.model.classifier import Classifier
from worker.model.weight_means import estimating_statistics, weighted_mean
from worker.store import Store

NAME = "average"
"""Name of the set of images in requests."""
_ALIKE = {
    "backbone": "another backbone",
    "classes": "other classes",
    "preprocessing": "other preprocessing",
}
_MIN_IMAGES = 2  # BatchNorm has no variance of one image


def require_alike(models: Sequence[Classifier]) -> None:
    """Raise `ConfigurationError` unless the weights of the models can be averaged."""
    first = models[0]
    for other in models[1:]:
        for field, text in _ALIKE.items():
            if getattr(other.card, field) != getattr(first.card, field):
                raise ConfigurationError(
                    f"{other.address}: has {text} than {first.address}; only "
                    "models of one kind, fine-tuned from the same weights, have a useful mean"
                )


def average(models: Sequence[Classifier]) -> Classifier:
    """Return the mean of the models; the statistics of BatchNorm are still means, too."""
    states = [model.model.state_dict() for model in models]
    mean = weighted_mean(states, [1 / len(states)] * len(states))
    first = models[0]
    first.model.load_state_dict(mean)
    return first


def estimate_statistics(
    classifier: Classifier,
    loaders: Loaders[EvaluationFeed],
    ids: Ids,
    advance: Callable[[int], None],
) -> None:
    """Estimate BatchNorm's statistics in one pass over images, without augmentation.

    Args:
        classifier: The model, on its device.
        loaders: The loaders of the images.
        ids: The images, in an order that mixes the classes: the variance of a batch of one class
            would be too small.
        advance: Called with the number of images of each batch.
    """
    device = next(classifier.model.parameters()).device
    loaders.start()
    request = Request(dataset=NAME, samples=ids)
    with (
        contextlib.closing(loaders.batches(request)) as batches,
        estimating_statistics(classifier.model) as add,
    ):
        for batch in batches:
            sound = _sound(batch)
            if len(sound) >= _MIN_IMAGES:
                add(classifier.card.preprocessing.normalize(sound.to(device)))
            advance(len(batch.ids))


def _sound(batch: Batch) -> torch.Tensor:
    return batch.images if batch.valid.all() else batch.images[batch.valid]


def write_model(classifier: Classifier, sources: Sequence[str], store: Store) -> None:
    """Write a model to `final/` of an output, its card last.

    Args:
        classifier: The model.
        sources: The addresses of the models that it is the mean of.
        store: The output.
    """
    state = {
        name: tensor.contiguous().cpu() for name, tensor in classifier.model.state_dict().items()
    }
    data = safetensors.torch.save(state)
    card = dataclasses.replace(
        classifier.card,
        sha256=hashlib.sha256(data).hexdigest(),
        metrics={"averaged": list(sources)},
        # Those of one of the models would be wrong for the mean.
        temperature=1.0,
        thresholds={},
    )
    store.put(FINAL + WEIGHTS_NAME, data)
    store.put(FINAL + CARD_NAME, card.encode())
