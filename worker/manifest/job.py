"""The manifest as a whole: one fine-tuning job."""

from typing import Annotated, Literal

from pydantic import StringConstraints, model_validator

from worker.manifest.base import Count, Positive, Section, Text
from worker.manifest.data import Data
from worker.manifest.training import Model, Optimizer, Train


class Checkpoint(Section):
    """When to commit, besides the end of every epoch and a requested stop, and what is kept.

    A checkpoint that is due while one is under way is taken at the first step after that.
    """

    every_steps: Count | None = None
    every_minutes: Positive | None = None
    keep: Count = 2
    """Newest checkpoints to keep; the one with the best validation accuracy stays, too."""


class Final(Section):
    """What `final/` holds when the job is done."""

    weights: Literal["last", "best"] = "last"
    """Of the last step, or of the evaluation with the best accuracy (and, of equals, loss)."""
    onnx: bool = False
    """Write `model.onnx`, too; needs the packages onnx and onnxscript."""
    torch_export: bool = False
    """Write `model.pt2`, the program that `torch.export` makes, too."""


class Record(Section):
    """What is kept of the run besides its history."""

    samples: bool = False
    """Write which sample every global batch trained on, for `worker audit`."""


class Manifest(Section):
    """One fine-tuning job."""

    version: Literal[1]
    job: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    """Name in logs and metrics: lower-case letters, digits and inner dashes, at most 63."""
    output: Text
    """Prefix below which the job writes everything; one job, one prefix."""
    data: Data
    model: Model
    optimizer: Optimizer
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    final: Final = Final()
    record: Record = Record()

    @model_validator(mode="after")
    def _fits_together(self) -> "Manifest":
        lanes = self.data.shuffle.lanes
        if lanes and self.train.batch_size % lanes:
            raise ValueError(
                f"data.shuffle.lanes: must divide train.batch_size, {self.train.batch_size}"
            )
        if self.train.early_stop and not self.data.val:
            raise ValueError("train.early_stop: needs data.val, whose accuracy it watches")
        if self.final.weights == "best" and not self.data.val:
            raise ValueError("final.weights: best needs data.val, whose accuracy it goes by")
        return self
