"""`model.json`: everything needed to use the weights beside it."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator
from torchvision.transforms import InterpolationMode

from worker.data.preprocessing import Preprocessing
from worker.errors import ConfigurationError
from worker.layout import CARD_NAME, WEIGHTS_NAME
from worker.store import ObjectMissing, Store, open_store
from worker.store.json_records import StoredRecord, complaint

_MAX_BYTES = 1 << 26  # 64 MiB, enough for hundreds of thousands of class names
_Side = Annotated[int, Field(ge=8, le=4096)]
_Triple = tuple[
    Annotated[float, Field(ge=-10, le=10)],
    Annotated[float, Field(ge=-10, le=10)],
    Annotated[float, Field(ge=-10, le=10)],
]


class _PreprocessingRecord(StoredRecord):
    crop_size: _Side
    resize_size: Annotated[int, Field(ge=8, le=8192)]
    mean: _Triple
    std: _Triple
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic"]
    depth: Annotated[int, Field(ge=8, le=16)] = 16

    @field_validator("std")
    @classmethod
    def _divides(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError("must be more than 0")
        return value


class _CardRecord(StoredRecord):
    backbone: str
    head: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    preprocessing: _PreprocessingRecord
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)] | None] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Card:
    """The description of a saved model."""

    backbone: str
    """The torchvision model."""
    head: str
    """The dotted name of its head."""
    classes: tuple[str, ...]
    """Names of the classes, in label order."""
    preprocessing: Preprocessing
    """The preprocessing of its images."""
    sha256: str
    """SHA-256 digest of the weights file, in hexadecimal."""
    metrics: dict[str, Any]
    """Evaluation metrics, as JSON data."""
    temperature: float = 1.0
    """What the logits are divided by before they are turned into probabilities."""
    thresholds: dict[str, float | None] = field(default_factory=dict)
    """Probability from which each class can be trusted, by name; None if there is none. Empty if
    thresholds were not asked for."""

    def encode(self) -> bytes:
        """Return the card as JSON."""
        return json.dumps(self._fields(), indent=1).encode()

    def as_metadata(self) -> dict[str, str]:
        """Return what a program needs to use an export, as text by name; values are JSON."""
        fields = self._fields()
        names = ("backbone", "classes", "preprocessing", "temperature", "thresholds", "sha256")
        return {
            name: fields[name] if isinstance(fields[name], str) else json.dumps(fields[name])
            for name in names
        }

    def _fields(self) -> dict[str, Any]:
        preprocessing = dataclasses.asdict(self.preprocessing)
        preprocessing["interpolation"] = self.preprocessing.interpolation.value
        return {**dataclasses.asdict(self), "preprocessing": preprocessing}


def read_card(store: Store) -> Card:
    """Return the card in a `final/` folder.

    Raises `ObjectMissing` if there is none, and `ConfigurationError` if it is not a valid card.
    """
    try:
        kept = _CardRecord.model_validate_json(store.get(CARD_NAME, 0, _MAX_BYTES))
    except ValueError as error:
        raise ConfigurationError(
            f"{store.uri}{CARD_NAME}: is not a valid model card ({complaint(error)})"
        ) from None
    fields = kept.preprocessing.model_dump()
    fields["interpolation"] = InterpolationMode(fields["interpolation"])
    known = Preprocessing(**fields)
    return Card(
        backbone=kept.backbone,
        head=kept.head,
        classes=kept.classes,
        preprocessing=known,
        sha256=kept.sha256,
        metrics=dict(kept.metrics),
        temperature=kept.temperature,
        thresholds=dict(kept.thresholds),
    )


def preset_beside(weights: str | None) -> Preprocessing | None:
    """Return the preprocessing from the model card beside `weights`; None if there is no card."""
    folder, _, name = (weights or "").rpartition("/")
    if name != WEIGHTS_NAME or not folder:
        return None
    try:
        return read_card(open_store(folder)).preprocessing
    except ObjectMissing:
        return None
