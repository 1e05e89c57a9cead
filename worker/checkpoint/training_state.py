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
_Score = Annotated[float, Field(allow_inf_nan=False)]


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
    score: _Score | None = None
    """`train.metric` of the last evaluation, negated if lower is better; None if undefined."""
    best_score: _Score | None = None
    """The best score so far."""
    best_accuracy: _Accuracy | None = None
    """The accuracy of the evaluation with the best score."""
    best_loss: _Loss | None = None
    """The loss of the evaluation with the best score."""
    best_step: _Steps | None = None
    """The step of the evaluation with the best score."""
    stale: _Steps = 0
    """Evaluations since the last one that early stopping counted as an improvement."""
    to_beat: _Score | None = None
    """The score that early stopping compares against."""
    skipped: _Steps = 0
    """Steps skipped because their loss was not finite."""
    skipped_in_a_row: _Steps = 0
    """Steps skipped since the last one that was taken."""
    bad_samples: tuple[_Steps, ...] = ()
    """Ids of training samples that were left out."""
    start: str | None = None
    """Digest of the weights that training started from, if groups are pulled towards them."""

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

    def note_evaluation(
        self, *, loss: float | None, accuracy: float, score: float | None, min_delta: float
    ) -> None:
        """Record the result of an evaluation.

        Args:
            loss: Mean loss, which breaks ties between equal scores; None if it is not finite.
            accuracy: Top-1 accuracy, in [0, 1].
            score: The figure that decides which evaluation is best, where higher is better; None if
                it is undefined, which is never an improvement.
            min_delta: Margin by which the score must rise for early stopping to count it as an
                improvement.
        """
        self.evaluated = self.step
        self.loss, self.accuracy, self.score = loss, accuracy, score
        if score is not None and (
            self.best_score is None or _rank(score, loss) > _rank(self.best_score, self.best_loss)
        ):
            self.best_score, self.best_accuracy, self.best_loss = score, accuracy, loss
            self.best_step = self.step
        if score is not None and (self.to_beat is None or score > self.to_beat + min_delta):
            self.to_beat, self.stale = score, 0
        else:
            self.stale += 1


def _rank(score: float, loss: float | None) -> tuple[float, float]:
    """Return a sort key for evaluations: the score first, then the lower loss."""
    # A loss that is not finite loses every tie.
    return score, -math.inf if loss is None else -loss


_ADAPTER = TypeAdapter(State)
