"""The manifest's sections about training: model, rates, schedule, loss and length."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from worker.manifest.base import Count, Fraction, NonNegative, Patterns, Positive, Section, Text

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "loss"]
"""The figures that can decide which weights are best."""


class Model(Section):
    """The backbone and where its weights come from."""

    backbone: Text
    """Name in `torchvision.models`, such as `efficientnet_b0`; see `worker models`."""
    weights: Text = "none"
    """Address of a safetensors file or of a file written by `torch.save` (a state dict, or a
    training script's checkpoint that contains one), a torchvision weights name such as
    `IMAGENET1K_V1`, or `none` for random weights.
    """
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Rate of all dropout layers. Default: the family's own."""
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Rate at which the last residual block is left out (Huang et al., 2016); it grows linearly
    from 0 at the first. Default: the family's own."""

    @property
    def pretrained(self) -> str | None:
        """The weights to start from, if any."""
        return None if self.weights == "none" else self.weights


class Span(Section):
    """A stretch of training, in epochs (such as 2 or 0.5) or in steps."""

    epochs: Positive | None = None
    """Length in epochs, such as 2 or 0.5; cannot be combined with `steps`."""
    steps: Count | None = None
    """Length in steps."""

    @model_validator(mode="after")
    def _one_unit(self) -> "Span":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set either epochs or steps")
        return self

    def in_steps(self, steps_per_epoch: int) -> int:
        """Return the length in steps, at least 1."""
        # `_one_unit` guarantees that one of the two is set.
        return self.steps or max(1, round((self.epochs or 0) * steps_per_epoch))


class Freeze(Span):
    """The time for which a group stays frozen before it is released."""

    block_every: Positive | None = None
    """Interval at which blocks are released one by one, from the head down (Howard and Ruder,
    2018); in epochs if `epochs` is set, otherwise in steps. Default: all at once.
    """

    def release(self, number: int, steps_per_epoch: int) -> int:
        """Return the step that releases block `number` of the group, counted from the head."""
        later = number * (self.block_every or 0)
        if self.epochs is not None:
            return max(1, round((self.epochs + later) * steps_per_epoch))
        return (self.steps or 0) + round(later)


class Geometric(Section):
    """Rates that grow by equal factors from a group's first block to its last."""

    from_: Annotated[Positive, Field(alias="from")]
    """Learning rate of the block nearest to the input."""
    to: Positive
    """Learning rate of the block nearest to the head."""


class Group(Section):
    """Parameters that share a learning rate; each belongs to the first group that matches it."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")] | None = None
    """Name in reports, metrics and sweeps: letters, digits, `_` and `-`. Default: the patterns."""
    match: Patterns
    """Leading components of the parameter's dotted name, each literal or a glob (`features.1`,
    `layer[34]`), or a list of such patterns; `head` and `backbone` work for any model family, and
    `*` matches the rest.
    """
    scale: Positive | None = None
    """Learning rate as a multiple of `optimizer.lr`. Default: 1."""
    lr: Positive | None = None
    """Absolute learning rate, in place of `scale`."""
    geometric: Geometric | None = None
    """Rates that grow by equal factors from block to block, in place of `scale`."""
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Factor by which the rate is multiplied for every block away from the head."""
    weight_decay: NonNegative | None = None
    """Weight decay of the group. Default: `optimizer.weight_decay`."""
    towards: Literal["start"] | None = None
    """`start`: weight decay pulls towards the pretrained weights instead of zero (L2-SP: Li et al.,
    2018); not for the head, which is new."""
    freeze: Literal["always"] | Freeze | None = None
    """`always`, or how long the group stays frozen; frozen layers run without a backward pass and
    in evaluation mode.
    """
    batch_norm: Literal["train", "frozen"] = "train"
    """`frozen`: BatchNorm leaves its running statistics unchanged even if its weights are trained.
    """

    @model_validator(mode="after")
    def _one_rate(self) -> "Group":
        if sum(value is not None for value in (self.scale, self.lr, self.geometric)) > 1:
            raise ValueError("set at most one of scale, lr and geometric")
        if self.geometric and self.layer_decay:
            raise ValueError("set either geometric or layer_decay")
        rates = (self.scale, self.lr, self.geometric, self.layer_decay)
        if self.freeze == "always" and any(rate is not None for rate in rates):
            raise ValueError("an always-frozen group has no rate; remove the rate or `freeze`")
        return self


class Schedule(Section):
    """Multiplier of all groups' learning rates over the course of training."""

    name: Literal["constant", "cosine", "linear", "step", "one_cycle"] = "constant"
    """`constant`, `cosine`, `linear`, `step` or `one_cycle` (Smith and Topin, 2018; with the
    phases and the momentum of torch's `OneCycleLR`)."""
    warmup: Span | None = None
    """Linear rise to the full rate before the rest of the schedule."""
    final: Fraction | None = None
    """`cosine` and `linear` only: the final rate as a share of the full rate. Default: 0."""
    every: Span | None = None
    """`step` only: interval at which the rates are multiplied by `factor`."""
    factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """`step` only: multiplier of the rates at each interval. Default: 0.1."""

    @model_validator(mode="after")
    def _own_keys(self) -> "Schedule":
        if self.name == "step" and self.every is None:
            raise ValueError("the step schedule needs `every`, such as {epochs: 2}; add it")
        if self.name != "step" and self.every is not None:
            raise ValueError("`every` belongs to the step schedule; remove it")
        if self.factor is not None and self.name != "step":
            raise ValueError("factor belongs to the step schedule; remove it")
        if self.final is not None and self.name not in ("cosine", "linear"):
            raise ValueError("final belongs to the cosine and linear schedules; remove it")
        if self.warmup and self.name == "one_cycle":
            raise ValueError("one_cycle warms up by itself; remove warmup")
        return self


class Optimizer(Section):
    """Optimizer, learning-rate groups and schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """`adam`, `adamw` or `sgd`."""
    lr: Positive
    """Base learning rate; each group's `scale` is relative to it."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """`sgd` only. Default: 0.9; `one_cycle` sets its own."""
    weight_decay: NonNegative = 0.0
    """L2 penalty, or decoupled weight decay with `adamw`."""
    decay_norms_and_biases: bool = True
    """`false` exempts norms, biases, layer scales, class tokens and position embeddings from weight
    decay."""
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]
    """Parameter groups; each parameter belongs to the first that matches it. Every parameter must
    match one. See below.
    """
    schedule: Schedule = Schedule()
    """Multiplier of all learning rates, as a function of the step."""
    clip_norm: Positive | None = None
    """Maximum norm of the gradient over all parameters; a larger gradient is scaled down to it."""

    @model_validator(mode="after")
    def _distinct_names(self) -> "Optimizer":
        names = [group.name for group in self.groups if group.name]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"groups: two are named {twice!r}; rename one")
        return self

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> "Optimizer":
        if self.momentum is not None and self.name != "sgd":
            raise ValueError("momentum belongs to sgd; remove it")
        if self.momentum is not None and self.schedule.name == "one_cycle":
            raise ValueError("one_cycle sets the momentum itself; remove momentum")
        return self


class EarlyStop(Section):
    """End before the last epoch when `train.metric` no longer improves."""

    patience: Count
    """Number of epochs without a better value on the validation set after which training ends."""
    min_delta: NonNegative = 0.0
    """Smallest improvement that counts: 0.01 is one percentage point of accuracy."""


class Train(Section):
    """Length, batch, loss, precision and seed."""

    epochs: Annotated[int, Field(ge=1, le=10**6)]
    """Number of passes over the training set; raise it to train a finished job further."""
    batch_size: Annotated[int, Field(ge=1, le=10**6)]
    """Images per optimizer step over all ranks together; must be a multiple of the number of ranks.
    The last batch of an epoch may be smaller.
    """
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed for the sample order, the augmentation, the new head and dropout."""
    micro_batch: Count | None = None
    """Images per forward and backward pass of a rank, with gradient accumulation. Default: the
    rank's full share, halved until it fits into GPU memory.
    """
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`fp32` (TF32 on GPUs, in convolutions and matrix products alike), `bf16`, `fp16`, or `auto`:
    bf16 on GPUs that support it, fp16 on others, fp32 on CPUs."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: this takes less GPU memory, but training is
    about a third slower.
    """
    compile: bool = False
    """Use `torch.compile`; needs a compiler, Python's headers and, on GPUs, Triton, as in an image
    that was built with `COMPILE=1`.
    """
    cache_features: bool = False
    """While only the head is trained, for whole epochs: compute the features of all images once,
    without augmentation, and train the head on them, in seconds. Takes memory for them on every
    rank."""
    sync_batch_norm: bool = False
    """Compute BatchNorm statistics over all ranks; on GPUs only, and not with micro-batches."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread over all classes."""
    class_weights: Literal["balanced"] | dict[Text, NonNegative] | None = None
    """Weight of the loss by class name, 1 for classes not named; `balanced`: inversely proportional
    to the frequency of each class.
    """
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights; if set, the average is evaluated and saved."""
    metric: Metric = "accuracy"
    """Figure on the validation set that decides which weights are best, and when training ends
    early: `accuracy`, `balanced_accuracy`, `macro_f1`, `macro_auroc`, or `loss`, which is better if
    it is lower."""
    early_stop: EarlyStop | None = None
    """End before the last epoch if `metric` no longer improves."""
    non_finite: Literal["fail", "skip"] = "fail"
    """`fail`: a loss that is NaN or infinite ends the job with exit code 78; `skip`: the step with
    such a loss is left out."""

    @model_validator(mode="after")
    def _compatible(self) -> "Train":
        if self.sync_batch_norm and self.micro_batch:
            raise ValueError("sync_batch_norm does not support micro-batches; remove micro_batch")
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile chooses what to recompute; remove activation_checkpointing")
        return self
