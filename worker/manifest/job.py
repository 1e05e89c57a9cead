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
    """Commit every so many steps, in addition to every epoch and every requested stop."""
    every_minutes: Positive | None = None
    """Commit every so many minutes."""
    keep: Count = 2
    """Number of newest checkpoints to keep; the one with the best validation accuracy stays as
    well."""


class Final(Section):
    """The contents of `final/` when the job is done."""

    weights: Literal["last", "best"] = "last"
    """`last`: the weights of the last step; `best`: those of the evaluation with the best accuracy
    (ties go to the lowest loss).
    """
    onnx: bool = False
    """Also write `model.onnx`; needs the packages onnx and onnxscript."""
    torch_export: bool = False
    """Also write `model.pt2`, as `torch.export` makes it."""


class Record(Section):
    """Records of the run besides its history."""

    samples: bool = False
    """Keep which samples every step trained on, for `worker audit`."""


class Manifest(Section):
    """A fine-tuning job."""

    version: Literal[1]
    """`1`."""
    job: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    """Name in logs and metrics: at most 63 lowercase letters, digits and inner dashes."""
    output: Text
    """Prefix below which the job writes everything; one job, one prefix."""
    data: Data
    """Images."""
    model: Model
    """Backbone and weights."""
    optimizer: Optimizer
    """Optimizer, rate groups and schedule."""
    train: Train
    """Length, batch, loss and precision."""
    checkpoint: Checkpoint = Checkpoint()
    """When to commit, and what to keep."""
    final: Final = Final()
    """What `final/` holds."""
    record: Record = Record()
    """What is recorded besides the history."""

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
