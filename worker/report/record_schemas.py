"""Schemas of a run's records, with bounds that ensure that a page can be rendered from them."""

from typing import Annotated

from pydantic import Field, JsonValue, RootModel

from worker.checkpoint.commit import MAX_STEPS
from worker.record.events import Real, Share, StepCount, Text
from worker.store.json_records import StoredRecord


class GroupRecord(StoredRecord):
    """A parameter group, as planned."""

    name: Text
    match: tuple[Text, ...]
    rate_peak: Real
    weight_decay: Real
    parameters: Annotated[int, Field(ge=0)]
    share: Share
    release_step: StepCount | None


class DataRecord(StoredRecord):
    """A data set, as planned."""

    images: Annotated[int, Field(ge=0)]
    identity: Text = ""
    """The digest of its index; empty if that is not known."""
    source: Text = ""
    """What it was packed from; empty if that is not known."""


class PlanRecord(StoredRecord):
    """The plan, as `worker plan` showed it at the start of an attempt."""

    classes: tuple[Text, ...] = ()
    image_size: Annotated[int, Field(ge=1)] | None = None
    train: DataRecord | None = None
    val: DataRecord | None = None
    test: DataRecord | None = None
    steps_per_epoch: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 1
    groups: tuple[GroupRecord, ...] = ()


class EnvironmentRecord(RootModel[dict[str, JsonValue]]):
    """The environment that an attempt ran in."""


class PickRecord(StoredRecord):
    """An image that an evaluation picked for a person to look at."""

    sample: Text
    label: Annotated[int, Field(ge=0)]
    predicted: Annotated[int, Field(ge=0)]
    confidence: Share
    # Only base64, as the page embeds it in a `data:` URL.
    jpeg: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$", max_length=1 << 20)] = ""


class PictureLists(StoredRecord):
    """The images that an evaluation picked, by kind, each list in order."""

    wrong: tuple[PickRecord, ...] = ()
    """The misclassified images with the highest loss."""
    unsure: tuple[PickRecord, ...] = ()
    """The images whose two most likely classes are closest."""
    suspects: tuple[PickRecord, ...] = ()
    """Images, without pictures, that the model confidently gives another label."""

    def of_classes(self, count: int) -> "PictureLists":
        """Return the lists without images of classes beyond the first `count`."""
        return PictureLists(
            **{
                kind: tuple(pick for pick in picks if max(pick.label, pick.predicted) < count)
                for kind, picks in self
            }
        )


class BadSampleRecord(StoredRecord):
    """A sample that was left out."""

    id: Annotated[int, Field(ge=0)]
    reason: Text
    text: Text


class BadSampleList(RootModel[tuple[BadSampleRecord, ...]]):
    """The samples of one data set that were left out."""
