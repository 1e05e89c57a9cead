"""The plan of a prediction: which images are in which part. Every starter reads the same one."""

from typing import Annotated, Literal

from pydantic import Field

from worker.errors import ConfigurationError
from worker.layout import PREDICTION_NAME
from worker.redaction import redacted
from worker.store import ObjectMissing, Store
from worker.store.json_records import StoredRecord, get_json

PREDICTIONS, EMBEDDINGS = "predictions/", "embeddings/"
INDEX_NAME = f"{PREDICTIONS}index.json"
SOURCE = f"{PREDICTIONS}source/"
"""Prefix of what a starter has written down about a source that has no index."""

LISTS = (".txt", ".lst", ".list")
"""Suffixes of lists of addresses."""

Format = Literal["jsonl", "csv", "parquet"]
Kind = Literal["set", "tars", "files"]
"""An indexed set, tars without an index, or loose images."""


class PartPlan(StoredRecord):
    """A part: the images of a shard, or a slice of a listing."""

    name: str
    """Its name in messages: the shard, or the first image."""
    images: Annotated[int, Field(ge=0)]


class PredictionPlan(StoredRecord):
    """Everything that the results depend on."""

    version: Literal[1] = 1
    model: str
    """Address of the model."""
    model_sha256: str
    """Digest of its weights."""
    source: str
    """Address of the images."""
    kind: Kind
    """How the images are stored."""
    place: str = ""
    """Where the listing or the scans are, below the output; empty for an indexed set."""
    identity: str
    """Digest of the index, or of the listing."""
    top: Annotated[int, Field(ge=1)] | None
    """Classes per image; None for all."""
    format: Format
    embeddings: bool
    parts: tuple[PartPlan, ...]

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(part.images for part in self.parts)

    def classes_per_image(self, classes: int) -> int:
        """Return the number of classes that are listed for an image, of `classes` in all."""
        return classes if self.top is None else min(self.top, classes)

    def part_name(self, number: int) -> str:
        """Return the name of the object with the results of a part."""
        return f"{PREDICTIONS}{number:06d}.{self.format}"

    def embeddings_name(self, number: int) -> str:
        """Return the name of the object with the features of a part."""
        return f"{EMBEDDINGS}{number:06d}.npy"

    def number_of(self, name: str) -> int | None:
        """Return the number of the part whose results are in an object, or None if in none."""
        stem, _, suffix = name.removeprefix(PREDICTIONS).partition(".")
        if suffix != self.format or not stem.isdecimal() or int(stem) >= len(self.parts):
            return None
        return int(stem) if name == self.part_name(int(stem)) else None


def read_plan(out: Store) -> PredictionPlan | None:
    """Return the plan of the prediction in a store, or None if there is none.

    Raises:
        ConfigurationError: If the plan is damaged.
    """
    try:
        plan = get_json(out, PREDICTION_NAME, PredictionPlan, 1 << 30)
    except ObjectMissing:
        return None
    if plan is None:
        raise ConfigurationError(f"{out.uri}{PREDICTION_NAME}: is damaged; use another --out")
    return plan


def require_same(found: PredictionPlan, wanted: PredictionPlan, out: Store) -> None:
    """Raise `ConfigurationError` if the plan in the store is for another prediction."""
    for field in ("model_sha256", "source", "top", "format", "embeddings"):
        before, now = getattr(found, field), getattr(wanted, field)
        if before != now:
            difference = redacted(f"{field}: {before} there, {now} here")
            raise ConfigurationError(
                f"--out: {out.uri} holds another prediction ({difference}); use another --out"
            )
