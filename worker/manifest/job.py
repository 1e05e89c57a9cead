"""The manifest as a whole: one fine-tuning job."""

from typing import Annotated, Literal

from pydantic import StringConstraints, model_validator

from worker.manifest.base import Count, Section, Text
from worker.manifest.data import Data
from worker.manifest.training import Model, Optimizer, Train


class Checkpoint(Section):
    """When to commit, besides the end of every epoch and a requested stop, and what is kept."""

    every_steps: Count | None = None
    keep: Count = 2
    """Newest checkpoints to keep."""


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
        return self
