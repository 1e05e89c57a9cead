"""`model.json`: all that it takes to use the weights beside it."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from torchvision.transforms import InterpolationMode

from worker.data.preprocessing import Preprocessing
from worker.errors import ConfigurationError
from worker.store import ObjectMissing, Store, open_store

CARD_NAME, WEIGHTS_NAME = "model.json", "model.safetensors"


@dataclass(frozen=True)
class Card:
    """A written model; `sha256` is that of its weights, `metrics` JSON data."""

    backbone: str
    head: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    sha256: str
    metrics: dict[str, Any]

    def encode(self) -> bytes:
        """The card as JSON."""
        preprocessing = dataclasses.asdict(self.preprocessing)
        preprocessing["interpolation"] = self.preprocessing.interpolation.value
        fields = {**dataclasses.asdict(self), "preprocessing": preprocessing}
        return json.dumps(fields, indent=1).encode()


def read_card(store: Store) -> Card:
    """The card in a `final/` folder.

    Raises `ObjectMissing` where there is none, `ConfigurationError` for one that is not ours.
    """
    try:
        fields = json.loads(store.get(CARD_NAME))
        preprocessing = fields["preprocessing"]
        preprocessing["interpolation"] = InterpolationMode(preprocessing["interpolation"])
        for triple in ("mean", "std"):
            preprocessing[triple] = tuple(preprocessing[triple])
        known = Preprocessing(**preprocessing)
        return Card(**{**fields, "classes": tuple(fields["classes"]), "preprocessing": known})
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(f"{store.uri}{CARD_NAME}: is not a model card of ours") from None


def preset_beside(weights: str | None) -> Preprocessing | None:
    """How a model of ours wants its images, where `weights` is the address of one."""
    folder, _, name = (weights or "").rpartition("/")
    if name != WEIGHTS_NAME or not folder:
        return None
    try:
        return read_card(open_store(folder)).preprocessing
    except ObjectMissing:
        return None
