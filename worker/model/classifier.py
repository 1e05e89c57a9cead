"""A finished model, ready to classify images."""

import hashlib

import safetensors.torch
import torch
from torch import nn

from worker.data.decode_image import MAX_PIXELS, ImageSpec, decode
from worker.errors import ConfigurationError
from worker.layout import WEIGHTS_NAME
from worker.model.backbone import build_backbone, logits_of
from worker.model.model_card import Card, read_card
from worker.model.pretrained_weights import load_tensors
from worker.store import ObjectMissing, open_store
from worker.store.sweep_hint import sweep_hint


class Classifier:
    """The model loaded from a `final/` folder.

    Args:
        address: The address of the folder.
        card: Its card.
        model: The model.
    """

    def __init__(self, address: str, card: Card, model: nn.Module) -> None:
        self.address = address
        self.card = card
        self.model = model.eval()

    def predict(self, data: bytes) -> list[tuple[str, float]]:
        """Return classes and probabilities for an encoded image, the most likely first.

        Raises `BadSample` if the bytes are not an image.
        """
        preset = self.card.preprocessing
        images = torch.empty(1, 3, preset.crop_size, preset.crop_size, dtype=torch.uint8)
        preset.evaluated(decode(memoryview(data), ImageSpec(MAX_PIXELS, preset.depth)), images[0])
        with torch.inference_mode():
            logits, _ = logits_of(self.model(preset.normalize(images)))
        chances = (logits[0] / self.card.temperature).softmax(0).tolist()
        return sorted(zip(self.card.classes, chances, strict=True), key=lambda pair: -pair[1])


def load_classifier(address: str) -> Classifier:
    """Return the model in a `final/` folder, given the address of the folder or the job's output.

    Raises `ConfigurationError` if there is none, or if it is corrupt.
    """
    store = open_store(address)
    try:
        card = read_card(store)
    except ObjectMissing:
        store = open_store(f"{address.rstrip('/')}/final/")
        try:
            card = read_card(store)
        except ObjectMissing:
            raise ConfigurationError(
                f"{address}: contains no model.json, either directly or in final/; "
                f"{sweep_hint(open_store(address), 'specify the output of a finished job')}"
            ) from None
    weights = store.get(WEIGHTS_NAME)
    if hashlib.sha256(weights).hexdigest() != card.sha256:
        raise ConfigurationError(
            f"{store.uri}{WEIGHTS_NAME}: does not match {store.uri}model.json; "
            "copy the folder again"
        )
    size = card.preprocessing.crop_size
    # Any seed will do, as all weights are replaced.
    backbone = build_backbone(card.backbone, len(card.classes), 0, size)
    load_tensors(backbone.model, safetensors.torch.load(weights))
    return Classifier(store.uri, card, backbone.model)
