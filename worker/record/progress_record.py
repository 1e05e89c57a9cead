"""The progress of an attempt, replaced in the store every half minute for `worker status`."""

import time
from typing import Annotated

from pydantic import Field

from worker.manifest.training import Metric
from worker.record.events import (
    EndEvent,
    EvaluationEvent,
    Event,
    Real,
    Share,
    StartEvent,
    StepCount,
    Text,
    Time,
)
from worker.record.progress import StepProgress
from worker.store.json_records import StoredRecord


class End(StoredRecord):
    """The end of an attempt: exit code and reason."""

    code: int
    text: Text = ""


class ProgressRecord(StoredRecord):
    """The progress of an attempt; fields that are not known (yet) are None."""

    time: Time | None = None
    world_size: Annotated[int, Field(ge=1)] | None = None
    step: StepCount = 0
    total_steps: StepCount | None = None
    epoch: StepCount | None = None
    loss: Real | None = None
    validation_accuracy: Share | None = None
    metric: Metric = "accuracy"
    metric_value: Real | None = None
    metric_low: Real | None = None
    metric_high: Real | None = None
    best_metric: Real | None = None
    images_per_second: Real | None = None
    remaining_seconds: Time | None = None
    checkpoint_seconds: Time | None = None
    end: End | None = None

    def after(self, event: Event) -> "ProgressRecord":
        """Return the progress after an event."""
        match event:
            case StartEvent():
                return self._with(step=event.step, world_size=event.world_size)
            case EvaluationEvent():
                return self._with(
                    validation_accuracy=event.accuracy,
                    metric=event.metric,
                    metric_value=event.value,
                    metric_low=event.low,
                    metric_high=event.high,
                    best_metric=event.best,
                )
            case EndEvent():
                return self._with(end=End(code=event.code, text=event.text))
        return self

    def at(self, step: StepProgress) -> "ProgressRecord":
        """Return the progress after a step."""
        return self._with(
            step=step.step,
            total_steps=step.total_steps,
            epoch=step.epoch,
            loss=step.loss,
            images_per_second=step.images_per_second,
            remaining_seconds=step.remaining_seconds,
            checkpoint_seconds=step.checkpoint_seconds,
        )

    def _with(self, **fields: object) -> "ProgressRecord":
        return self.model_copy(update={**fields, "time": round(time.time(), 3)})
