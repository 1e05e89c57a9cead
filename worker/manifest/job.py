"""The manifest as a whole: one fine-tuning job."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from worker.manifest.base import Count, Fraction, Positive, Section, Text
from worker.manifest.data import Data
from worker.manifest.training import Model, Optimizer, Train

_OVERHEAD = 0.03


class Checkpoint(Section):
    """Retention of checkpoints, and their schedule in addition to epoch ends and requested stops.

    A checkpoint that is due while another is in progress is taken at the first step after that
    one has finished.
    """

    every_steps: Count | None = None
    """Steps between commits; there is also a commit at the end of every epoch and at every
    requested stop.
    """
    every_minutes: Positive | None = None
    """Minutes between commits; there is also a commit at the end of every epoch and at every
    requested stop.
    """
    overhead: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the time that saving may cost, from which the interval follows: blocked time and
    slower steps are measured, and attempts that die are taken into account. Default: 0.03 if no
    interval is set.
    """
    keep: Count = 2
    """Number of newest checkpoints to keep; the one with the best `train.metric` is kept as well.
    """

    @model_validator(mode="after")
    def _one_pace(self) -> "Checkpoint":
        if self.overhead and (self.every_steps or self.every_minutes):
            raise ValueError("overhead chooses the interval; remove every_steps and every_minutes")
        return self

    @property
    def share(self) -> float | None:
        """The share of the time that saving may cost; None if an interval is set."""
        if self.every_steps or self.every_minutes:
            return None
        return self.overhead or _OVERHEAD


class Thresholds(Section):
    """The probability from which a class can be trusted."""

    precision: Annotated[float, Field(gt=0, lt=1)]
    """Share of the images at or above the threshold of a class that are to be of that class."""


class Final(Section):
    """The contents of `final/` when the job is done."""

    weights: Literal["last", "best"] = "last"
    """`last`: the weights of the last step; `best`: those of the evaluation with the best
    `train.metric` (ties go to the lowest loss).
    """
    blend: Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=100)] | None = None
    """Shares of the final weights to blend with those at the first release (WiSE-FT: Wortsman et
    al., 2022), such as `[0, 0.25, 0.5, 0.75, 1]`; the one that validates best is written.
    """
    calibrate: bool = False
    """Fit a temperature on the validation set, so that of the predictions with a confidence of 0.9,
    nine in ten are right. Exports and `worker predict` divide the logits by it."""
    thresholds: Thresholds | None = None
    """Write a threshold for each class, measured on the validation set."""
    onnx: bool = False
    """Also write `model.onnx`; needs the packages onnx and onnxscript."""
    triton: bool = False
    """Also write `triton/`, a model repository for Triton and KServe; needs the same packages."""
    torch_export: bool = False
    """Also write `model.pt2`, the program exported by `torch.export`."""


class Record(Section):
    """Records of the run besides its history."""

    samples: bool = False
    """Record which samples every step trained on, for `worker audit`."""


class Manifest(Section):
    """A fine-tuning job."""

    version: Literal[1]
    """Version of the manifest format: `1`."""
    job: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    """Name in logs and metrics: at most 63 lowercase letters, digits and dashes, with no dash at
    either end."""
    output: Text
    """Prefix below which the job writes everything; each job needs its own."""
    data: Data
    """Shards, and the preparation of their images."""
    model: Model
    """Backbone and weights."""
    optimizer: Optimizer
    """Optimizer, rate groups and schedule."""
    train: Train
    """Length, batch size, loss and precision."""
    checkpoint: Checkpoint = Checkpoint()
    """Schedule and retention of checkpoints."""
    final: Final = Final()
    """Contents of `final/`."""
    record: Record = Record()
    """Optional records besides the history."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Manifest":
        lanes = self.data.shuffle.lanes
        if lanes and self.train.batch_size % lanes:
            raise ValueError(
                f"data.shuffle.lanes: must divide train.batch_size, {self.train.batch_size}"
            )
        needs = {
            "train.early_stop": self.train.early_stop,
            "train.metric": self.train.metric != "accuracy",
            "final.weights": self.final.weights == "best",
            "final.blend": self.final.blend,
            "final.calibrate": self.final.calibrate,
            "final.thresholds": self.final.thresholds,
        }
        pulled = [n for n, group in enumerate(self.optimizer.groups) if group.towards]
        if pulled and not self.model.pretrained:
            raise ValueError(
                f"optimizer.groups[{pulled[0]}].towards: there are no weights to pull towards; "
                "set model.weights"
            )
        wanted = next((field for field, is_set in needs.items() if is_set), None)
        if wanted and not self.data.is_validated:
            raise ValueError(f"{wanted}: is measured on the validation set; set data.val")
        return self
