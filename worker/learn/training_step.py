"""A training step over a global batch, on this rank's share of it."""

import contextlib
import dataclasses
import math
import time

import torch
from torch import Tensor, nn

from worker.data.epoch_plan import keyed_hash, split
from worker.data.loader import Batch
from worker.data.mixup import Blend
from worker.data.preprocessing import Preprocessing
from worker.learn.loss import Criterion
from worker.learn.micro_batch_trial import largest_that_fits
from worker.learn.micro_batches import Passes
from worker.learn.step_inputs import Inputs, prepare, prepare_features
from worker.learn.step_result import Pending, StepResult
from worker.manifest import Train
from worker.model.activation_checkpointing import checkpoint_activations
from worker.model.backbone import logits_of
from worker.model.batch_norm import BatchStatistics, RunningStatistics
from worker.model.learner import Learner
from worker.model.optimizer import freeze_at, start_momentum
from worker.ranks.data_parallel import in_parallel, without_exchange
from worker.ranks.device_transfer import Uploader
from worker.ranks.process_group import total
from worker.ranks.rank import Rank

_PROBES = 2  # the optimizer creates its state in the first step; memory use peaks in the second


class Engine:
    """The learner under DistributedDataParallel; all ranks must call every method together.

    A step has three stages, so that the device never runs out of work while the host inspects the
    results: `launch` queues the forward and backward passes of a step, `settle` then waits for the
    previous step, and `update` queues the weight update. Everything that depends on a step being
    finite is decided on the device, except for what `settle` does between the next step's `launch`
    and `update`.

    Args:
        learner: The model and its training state.
        preprocessing: Normalization of the images.
        criterion: The loss.
        train: The train section of the manifest.
        clip_norm: Norm above which the gradient is scaled down; None for no clipping.
        rank: This rank.
        full_batch: Number of images in a full global batch.
        head: Dotted name of the head, for steps on its inputs alone.
    """

    def __init__(
        self,
        learner: Learner,
        preprocessing: Preprocessing,
        criterion: Criterion,
        *,
        train: Train,
        clip_norm: float | None,
        rank: Rank,
        full_batch: int,
        head: str | None = None,
    ) -> None:
        self.learner = learner
        self._head = head
        self.probing = False
        """Whether batches hold the features that the head gets in place of images."""
        self._preprocessing = preprocessing
        self._criterion = criterion
        self._seed = train.seed
        self._clip_norm = clip_norm
        self._rank = rank
        self.device = next(learner.model.parameters()).device
        self._upload = Uploader(self.device)
        self._full_batch = full_batch
        start, stop = split(full_batch, rank.rank, rank.world_size)
        self._share = stop - start
        self._passes = Passes(
            full_batch=full_batch,
            world_size=rank.world_size,
            micro_batch=train.micro_batch,
            synchronized=train.sync_batch_norm,
        )
        self._planned = self._passes  # the same on all ranks, even after a memory trial on one
        self.expects_holes = False
        """Whether any rank has had bad samples, so a pass may have fewer images than planned."""
        # With SyncBatchNorm, a trial on one rank would wait for the other ranks' statistics.
        self._tries_memory = _can_run_out(self.device) and not train.sync_batch_norm
        self._phase: tuple[bool, ...] = ()
        self._parameters = list(learner.model.parameters())
        self._statistics = RunningStatistics(learner.model)
        self._batch_statistics = BatchStatistics(learner.model)
        self._updated: Pending | None = None
        self._decides_on_device = self.device.type == "cuda"
        self._compiled = train.compile
        if train.activation_checkpointing:
            checkpoint_activations(learner.model)
        if train.compile:
            learner.model.compile()
            if learner.average:
                learner.average.module.compile()

    def step(
        self, step: int, batch: Batch, global_count: int, blend: Blend | None = None
    ) -> StepResult:
        """Run all stages of a step in sequence; see `launch`.

        Args:
            step: The global step, from 0.
            batch: This rank's part of the batch.
            global_count: The number of images in the global batch.
            blend: How to blend the images; None to leave them unblended.

        Returns:
            The step's result, with the sums of this rank.
        """
        self.launch(step, batch, global_count, blend)
        self.update()
        return self._finish(self._launched)

    def launch(
        self, step: int, batch: Batch, global_count: int, blend: Blend | None = None
    ) -> None:
        """Queue a step on this rank's part of a global batch, without waiting for the device.

        The loss is the sum over the global batch divided by the number of images in a full one, so
        that every image carries the same weight: a last batch of one image does not cause a
        full-sized step, and a sample that was left out does not count.

        Args:
            step: The global step, from 0.
            batch: This rank's part of the batch. With a blend, it starts with the sample that
                precedes this part.
            global_count: The number of images in the global batch.
            blend: How to blend the images; None to leave them unblended.
        """
        began = time.monotonic()
        self.enter(step)
        if self.probing:
            inputs = prepare_features(batch, self._upload)
        else:
            inputs = prepare(batch, blend, self._preprocessing, self._upload)
        if self._probes and self._tries_memory:
            # Only a full share counts as a probe: a smaller one does not show the peak of memory
            # use.
            self._probes -= len(inputs.labels) >= self._share
            self._fit_into_memory(inputs)
        # Keyed by step, so that dropout needs no state in a checkpoint.
        self._seed_generators(int(keyed_hash(self._seed, step, self._rank.rank)[0]) >> 1)
        moved = time.monotonic()
        sums = self._accumulate(inputs, global_count)
        norm, norms = self._gradient_norms()
        scaler = self.learner.scaler
        # Not get_scale(), which waits for the device.
        scale = scaler._scale if scaler.is_enabled() else None
        self._launched = Pending(sums, norm, norms, scale)
        self._launched.spend("host_to_device", moved - began)
        self._launched.spend("forward_backward", time.monotonic() - moved)

    def update(self) -> None:
        """Apply the gradients of the launched step, the same on all ranks, if they are finite."""
        step, learner = self._launched, self.learner
        began = time.monotonic()
        # The same on all ranks: gradients are already reduced, and an inf or NaN from any rank is
        # in the sum.
        usable = step.norm.isfinite()
        if self._clip_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, step.norm)
        self._apply(usable)
        learner.scaler.update()
        learner.optimizer.zero_grad(set_to_none=True)
        # Non-finite activations have also reached BatchNorm's running statistics.
        self._statistics.settle(usable)
        step.spend("optimizer", time.monotonic() - began)
        self._updated = step

    def settle(self) -> StepResult | None:
        """Return the result of the last step that `update` handled; None if already returned."""
        return self._finish(self._updated) if self._updated else None

    def _finish(self, step: Pending) -> StepResult:
        """Wait for a step's results, update the moving average and return the step's result.

        An fp16 overflow in the backward pass only lowers the loss scale; the step counts as
        non-finite once the scale cannot be lowered further, or if a rank's loss itself is not
        finite.
        """
        self._updated = None
        began = time.monotonic()
        numbers = step.read()
        waited = time.monotonic()
        usable = math.isfinite(numbers.norm)
        # `settle` runs before the next update is queued, so the parameters are still those of this
        # step.
        if usable and self.learner.average:
            self.learner.average.update(self._parameters, self._statistics.sound)
        step.spend("forward_backward", waited - began)
        step.spend("optimizer", time.monotonic() - waited)
        # The operands are the same on all ranks, so either all or none of them enter the collective
        # below.
        overflow = not usable and self.learner.scaler.is_enabled() and numbers.scale > 1
        overflow = overflow and math.isfinite(total(numbers.loss)[0])
        return step.outcome(numbers, finite=usable or overflow)

    def abandon(self) -> None:
        """Discard a launched step instead of updating the weights."""
        self.learner.optimizer.zero_grad(set_to_none=True)
        self._statistics.restore()

    def enter(self, step: int) -> None:
        """Freeze and release parameters as planned for this step."""
        phase = (self.probing, *(group.trains_at(step) for group in self.learner.groups))
        if phase == self._phase and self.learner.model.training:
            return
        freeze_at(self.learner.model, self.learner.groups, step)
        if phase == self._phase:  # back from an evaluation
            return
        self._phase = phase
        self._probes = 0 if self.probing else _PROBES
        if self._decides_on_device:
            start_momentum(self.learner.optimizer)
        if self._compiled:
            torch._dynamo.reset()  # otherwise every phase counts toward its recompilation limit
        # Rebuilt, as the wrapper awaits gradients of the parameters trainable when it was built.
        model = self.learner.model
        if self.probing and self._head:
            model = model.get_submodule(self._head)
        self._parallel = in_parallel(model, self._rank)

    def _accumulate(self, inputs: Inputs, global_count: int) -> Tensor:
        """Accumulate the gradients of all micro-batches; ranks all-reduce them in the last one."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        short = self.expects_holes or self._planned.is_short(global_count)
        if self._rank.world_size > 1 and short:
            # Each rank has its own statistics, but after a resume all ranks have those of rank 0.
            # Use these in any case, so that a resume changes nothing.
            self._statistics.share()
        parts = list(inputs.split(self._passes.count(inputs.count, global_count)))
        for index, part in enumerate(parts, start=1):
            last = index == len(parts)
            suffice = self._passes.give_statistics(part.count, global_count)
            with contextlib.nullcontext() if last else without_exchange(self._parallel):
                sums += self._backward(self._parallel, part, suffice=suffice)
        return sums

    def _backward(self, model: nn.Module, inputs: Inputs, *, suffice: bool) -> Tensor:
        # The head alone has no BatchNorm.
        withheld = self._batch_statistics.withheld(inputs.images, suffice=suffice)
        with contextlib.nullcontext() if self.probing else withheld:
            with autocast(self.learner.precision, self.device):
                outputs = model(inputs.images)
            logits, auxiliary = logits_of(outputs)
            losses = self._criterion.losses(logits, auxiliary, inputs)
            # DistributedDataParallel averages over ranks, which may have parts of unequal size.
            loss = losses.sum() * self._rank.world_size / self._full_batch
            self.learner.scaler.scale(loss).backward()
        right = ((logits.argmax(1) == inputs.labels) * inputs.weights).sum()
        counts = right.double(), inputs.weights.sum().double()
        return torch.stack([losses.detach().sum().double(), *counts])

    def _seed_generators(self, seed: int) -> None:
        """Seed a step's generators; `torch.manual_seed` seeds others too and takes up to 1 ms."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)

    def _gradient_norms(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the full gradient's norm and that of each group with gradients, on the device."""
        learner = self.learner
        learner.scaler.unscale_(learner.optimizer)
        norms = {}
        for group in learner.optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                parts = torch._foreach_norm(gradients)
                norms[group["name"]] = torch.linalg.vector_norm(torch.stack(parts))
        # The norm of the norms is the norm of all gradients together.
        return torch.linalg.vector_norm(torch.stack(list(norms.values()))), norms

    def _apply(self, usable: Tensor) -> None:
        """Step the optimizer if `usable`; on a GPU, the device decides without a host sync."""
        optimizer = self.learner.optimizer
        if self._decides_on_device or usable:
            self.learner.pull.apply(usable)
        if self._decides_on_device:
            # The fused kernels change nothing unless this is 0.
            optimizer.found_inf = (~usable).float()  # type: ignore[attr-defined]
            optimizer.step()
        elif usable:
            optimizer.step()

    def _fit_into_memory(self, inputs: Inputs) -> None:
        """Shrink the micro-batch until it fits into memory, without other side effects.

        Runs on this rank alone: a collective that one rank aborted would hang all the others.
        """

        def reset() -> None:
            self.learner.optimizer.zero_grad(set_to_none=True)
            self._statistics.restore()

        size = self._passes.micro_batch or len(inputs.labels)
        fitting = largest_that_fits(
            inputs,
            size,
            attempt=self._try,
            reset=reset,
            rank=self._rank.rank,
        )
        if fitting < size:
            self._passes = dataclasses.replace(self._passes, micro_batch=fitting)

    def _try(self, inputs: Inputs) -> None:
        """Run the forward and backward passes on this rank alone.

        Runs uncompiled: a graph compiled here would also be used inside DistributedDataParallel,
        where it produces all gradients at once and leaves the all-reduce nothing to overlap with.
        """
        with contextlib.ExitStack() as stack:
            if self._compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            self._backward(self.learner.model, inputs, suffice=True)


def autocast(precision: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Return the autocast context in which a model runs in this precision; None for fp32."""
    return torch.autocast(device.type, precision, enabled=precision is not None)


def _can_run_out(device: torch.device) -> bool:
    return device.type == "cuda"
