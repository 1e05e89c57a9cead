"""`judgement.json` of `worker evaluate`: a model's figures on a data set."""

from typing import Annotated

from pydantic import Field

from worker.judge.judgment import Judgment
from worker.store.json_records import StoredRecord

_Count = Annotated[int, Field(ge=0)]


class EvaluationRecord(StoredRecord):
    """A model's figures on a data set."""

    model: str
    """Address of the model."""
    model_sha256: str
    """Digest of its weights."""
    dataset: str
    """Address of the data set."""
    identity: str
    """Digest of the data set's index."""
    temperature: float
    """What the model's logits were divided by."""
    left_out: dict[str, _Count]
    """Images of classes that the model does not know, by class."""
    absent: tuple[str, ...]
    """Classes of the model without an image in the data set."""
    bad_samples: tuple[str, ...]
    """Samples that could not be used, and why."""
    judgment: Judgment
