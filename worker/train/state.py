"""What a checkpoint holds besides tensors."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class State:
    """Steps done, the last step that was evaluated, and what came of it."""

    step: int = 0
    evaluated: int = 0
    loss: float | None = None
    accuracy: float | None = None
    best_accuracy: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Evaluations since the last one that early stopping saw as better, and its accuracy."""
    to_beat: float | None = None
    skipped: int = 0
    """Steps left out because their loss was not finite; and how many of them in a row."""
    skipped_in_a_row: int = 0
    bad_samples: tuple[int, ...] = ()
    """Ids of training samples that were left out."""

    @staticmethod
    def of(kept: Mapping[str, Any]) -> "State":
        """The state that `as_dict` was called on, from JSON data."""
        return State(**{**kept, "bad_samples": tuple(kept["bad_samples"])})

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON data."""
        return dataclasses.asdict(self)

    def note_evaluation(self, loss: float | None, accuracy: float, min_delta: float) -> None:
        """Take in the result of an evaluation; better means by more than `min_delta`."""
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
    """By which evaluations are compared: of equal accuracies, the lower loss is the better one."""
    return accuracy, -math.inf if loss is None else -loss
