"""The figures of a finished model, as `final/judgement.json` has them."""

from typing import Annotated

from pydantic import Field

from worker.judge.judgment import Judgment
from worker.judge.thresholds import Threshold
from worker.store.json_records import StoredRecord


def describe_source(step: int, blend: float | None) -> str:
    """Say which weights a model has, such as `step 12`.

    Args:
        step: The step of its weights.
        blend: Their share in the blend with the weights at release; None if there is no blend.
    """
    if blend is None or blend == 1:
        return f"step {step}"
    if blend == 0:
        return "the release, as final.blend chose"
    return f"a blend: {blend:.0%} of step {step}, {1 - blend:.0%} of the release"


class FinalFigures(StoredRecord):
    """The figures of a finished model, with its temperature and thresholds."""

    step: Annotated[int, Field(ge=0)]
    """The step of its weights."""
    blend: Annotated[float, Field(ge=0, le=1)] | None = None
    """Their share in the blend with the weights at release; None if there is no blend."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """What its logits are divided by; fitted on the validation set."""
    thresholds: tuple[Threshold, ...] = ()
    """The thresholds of its classes, from the validation set; empty if they were not asked for."""
    validation: Judgment | None = None
    """Its figures on the validation set, if there is one."""
    test: Judgment | None = None
    """Its figures on the test set, if there is one."""

    @property
    def source(self) -> str:
        """A description of its weights, such as `step 12`."""
        return describe_source(self.step, self.blend)
