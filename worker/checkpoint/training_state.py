"""The non-tensor part of a checkpoint."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from worker.checkpoint.commit import MAX_STEPS

_Steps = Annotated[int, Field(ge=0, le=MAX_STEPS)]
_Accuracy = Annotated[float, Field(ge=0, le=1)]
_Loss = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(kw_only=True)
class State:
    """The progress of training, as stored in a checkpoint."""

    step: _Steps = 0
    """Optimizer steps done."""
    evaluated: _Steps = 0
    """The step of the last evaluation."""
    loss: _Loss | None = None
    """Mean loss of the last evaluation; None if it is not finite."""
    accuracy: _Accuracy | None = None
    """Accuracy of the last evaluation."""
    best_accuracy: _Accuracy | None = None
    """The best accuracy so far."""
    best_loss: _Loss | None = None
    """The loss of the evaluation with the best accuracy."""
    best_step: _Steps | None = None
    """The step of the evaluation with the best accuracy."""
    stale: _Steps = 0
    """Evaluations since the last one that early stopping counted as an improvement."""
    to_beat: _Accuracy | None = None
    """The accuracy that early stopping compares against."""
    skipped: _Steps = 0
    """Steps skipped because their loss was not finite."""
    skipped_in_a_row: _Steps = 0
    """Steps skipped since the last one that was taken."""
    bad_samples: tuple[_Steps, ...] = ()
    """Ids of training samples that were left out."""

    @staticmethod
    def parse(data: bytes) -> "State":
        """Parse a state from JSON data that holds the fields of `as_dict`.

        Raises `ValueError` if a field is missing or out of bounds.
        """
        state = _ADAPTER.validate_json(data, strict=True)
        if len(set(state.bad_samples)) < len(state.bad_samples):
            raise ValueError("bad_samples: lists a sample twice")
        return state

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON data."""
        return dataclasses.asdict(self)

    def note_evaluation(self, loss: float | None, accuracy: float, min_delta: float) -> None:
        """Record the result of an evaluation.

        Args:
            loss: Mean loss, which breaks ties between equal accuracies; None if it is not finite.
            accuracy: Top-1 accuracy, in [0, 1].
            min_delta: Margin by which the accuracy must rise for early stopping to count it as an
                improvement.
        """
        self.evaluated = self.step
        self.loss, self.accuracy = loss, accuracy
        if self.best_accuracy is None or _rank(accuracy, loss) > _rank(
            self.best_accuracy, self.best_loss
        ):
            self.best_accuracy, self.best_loss, self.best_step = accuracy, loss, self.step
        if self.to_beat is None or accuracy > self.to_beat + min_delta:
            self.to_beat, self.stale = accuracy, 0
        else:
            self.stale += 1


def _rank(accuracy: float, loss: float | None) -> tuple[float, float]:
    """Return a sort key for evaluations: accuracy first, then the lower loss."""
    # A loss that is not finite loses every tie.
    return accuracy, -math.inf if loss is None else -loss


_ADAPTER = TypeAdapter(State)
