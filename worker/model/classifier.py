"""A finished model, ready to classify images."""

import hashlib

import safetensors.torch
import torch
from torch import nn

from worker.data.image import ImageSpec, decode
from worker.errors import ConfigurationError
from worker.model.backbone import build_backbone, logits_of
from worker.model.card import WEIGHTS_NAME, Card, read_card
from worker.model.weights import load_tensors
from worker.store import open_store

_MAX_PIXELS = 100_000_000


class Classifier:
    """The model of a `final/` folder."""

    def __init__(self, card: Card, model: nn.Module) -> None:
        self.card = card
        self._model = model.eval()

    def predict(self, data: bytes) -> list[tuple[str, float]]:
        """Class and probability of an encoded image, the most likely first.

        Raises `BadSample` where the bytes are no image.
        """
        preset = self.card.preprocessing
        images = torch.empty(1, 3, preset.crop_size, preset.crop_size, dtype=torch.uint8)
        preset.evaluated(decode(memoryview(data), ImageSpec(_MAX_PIXELS, preset.depth)), images[0])
        with torch.inference_mode():
            logits, _ = logits_of(self._model(preset.normalise(images)))
        chances = logits[0].softmax(0).tolist()
        return sorted(zip(self.card.classes, chances, strict=True), key=lambda pair: -pair[1])


def load_classifier(address: str) -> Classifier:
    """The model in the `final/` folder at `address`.

    Raises `ConfigurationError` where it is not whole.
    """
    store = open_store(address)
    card = read_card(store)
    weights = store.get(WEIGHTS_NAME)
    if hashlib.sha256(weights).hexdigest() != card.sha256:
        raise ConfigurationError(
            f"{store.uri}{WEIGHTS_NAME}: is not what {store.uri}model.json describes; "
            "copy the folder again"
        )
    size = card.preprocessing.crop_size
    backbone = build_backbone(card.backbone, len(card.classes), 0, size)
    load_tensors(backbone.model, safetensors.torch.load(weights))
    return Classifier(card, backbone.model)
