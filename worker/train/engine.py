"""One optimiser step over a global batch, on this rank's share of it."""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from worker.data.loader import Batch
from worker.data.mix import Blend
from worker.data.plan import keyed_hash
from worker.data.preprocessing import Preprocessing
from worker.errors import ConfigurationError
from worker.manifest import Train
from worker.model.backbone import logits_of
from worker.model.learner import Learner
from worker.model.optimizer import freeze_at
from worker.train.criterion import Criterion
from worker.train.distributed import total
from worker.train.inputs import Inputs, prepare
from worker.train.rank import Rank

log = logging.getLogger(__name__)

_PROBES = 2  # the optimiser makes its state after the first step, and from then on memory is full


@dataclass(frozen=True)
class Outcome:
    """What a step gave.

    `sums` are this rank's sum of losses, its right answers and its images, float64 [3], on the
    device. Where the gradient was not `finite`, on any rank, nothing was changed on all of them.
    `norms` are those of the gradient by group, before clipping. `seconds` says how long its phases
    took; on a GPU, which works behind, forward and backward are what is waited for.
    """

    sums: Tensor
    finite: bool
    norms: Mapping[str, float]
    seconds: Mapping[str, float]


class Engine:
    """The learner under DistributedDataParallel; every method is called by all ranks together."""

    def __init__(
        self,
        learner: Learner,
        preprocessing: Preprocessing,
        criterion: Criterion,
        train: Train,
        clip_norm: float | None,
        rank: Rank,
    ) -> None:
        self.learner = learner
        self._preprocessing = preprocessing
        self._criterion = criterion
        self._seed = train.seed
        self._clip_norm = clip_norm
        self._rank = rank
        self.device = next(learner.model.parameters()).device
        self._share = -(-train.batch_size // rank.world_size)
        self._micro_batch = train.micro_batch
        # With it, a trial by one rank alone would wait for the statistics of the others.
        self._tries_memory = _can_run_out(self.device) and not train.sync_batch_norm
        self._phase: tuple[bool, ...] = ()
        self._buffers = list(learner.model.buffers())
        self._sound = [buffer.clone() for buffer in self._buffers]
        self._compiled = train.compile
        if train.compile:
            learner.model.compile()

    def step(
        self, step: int, batch: Batch, global_count: int, blend: Blend | None = None
    ) -> Outcome:
        """Train on this rank's part of global batch `step`, which has `global_count` images.

        The loss is the mean over the global batch, in which a sample that was left out counts as
        none. With a `blend`, the batch is led by the sample before its first.
        """
        began = time.monotonic()
        self.enter(step)
        inputs = prepare(batch, blend, self._preprocessing, self.device)
        if self._probes and self._tries_memory:
            self._probes -= len(inputs.labels) >= self._share
            self._fit_into_memory(inputs)
        # Keyed by step, so that dropout needs no state in a checkpoint.
        torch.manual_seed(int(keyed_hash(self._seed, step, self._rank.rank)[0]) >> 1)
        moved = time.monotonic()
        sums = self._accumulate(inputs, global_count)
        norm, norms = self._gradient_norms()
        computed = time.monotonic()
        finite = self._update(sums, norm)
        seconds = {
            "host_to_device": moved - began,
            "forward_backward": computed - moved,
            "optimizer": time.monotonic() - computed,
        }
        usable = finite and sums.isfinite().all()
        return Outcome(sums if usable else torch.zeros_like(sums), finite, norms, seconds)

    def enter(self, step: int) -> None:
        """Freeze and release what is frozen and released at this step."""
        phase = tuple(group.trains_at(step) for group in self.learner.groups)
        if phase == self._phase and self.learner.model.training:
            return
        freeze_at(self.learner.model, self.learner.groups, step)
        if phase == self._phase:  # back from an evaluation
            return
        self._phase = phase
        self._probes = _PROBES
        if self._compiled:
            torch._dynamo.reset()  # else the phases add up to its limit of compilations
        # A new one, as it waits for the gradients of what was trainable when it was made.
        on_gpu = self.device.type == "cuda"
        self._parallel = DistributedDataParallel(
            self.learner.model,
            device_ids=[self.device.index] if on_gpu else None,
            # Else it lays its buckets out anew after the first step, and gloo adds up in another
            # order from then on: a resumed run would differ in the last bit from three ranks up.
            find_unused_parameters=not on_gpu and self._rank.world_size > 2,
        )

    def _accumulate(self, inputs: Inputs, global_count: int) -> Tensor:
        """Add up the gradients of all micro-batches; ranks exchange them with the last one."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        parts = list(inputs.split(self._micro_batch or len(inputs.labels)))
        for part in parts:
            last = part is parts[-1]
            with contextlib.nullcontext() if last else self._parallel.no_sync():
                sums += self._backward(self._parallel, part, global_count)
        return sums

    def _backward(self, model: nn.Module, inputs: Inputs, global_count: int) -> Tensor:
        with autocast(self.learner, self.device):
            outputs = model(inputs.images)
        logits, auxiliary = logits_of(outputs)
        losses = self._criterion.losses(logits, auxiliary, inputs)
        # DistributedDataParallel takes the mean over ranks, which may hold unequal parts.
        loss = losses.sum() * self._rank.world_size / global_count
        self.learner.scaler.scale(loss).backward()
        right = ((logits.argmax(1) == inputs.labels) * inputs.weights).sum()
        counts = right.double(), inputs.weights.sum().double()
        return torch.stack([losses.detach().sum().double(), *counts])

    def _gradient_norms(self) -> tuple[Tensor, dict[str, float]]:
        """The norm of the whole gradient, on the device, and those of the groups that have one."""
        learner = self.learner
        learner.scaler.unscale_(learner.optimizer)
        norms = {}
        for group in learner.optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                norms[group["name"]] = nn.utils.get_total_norm(gradients)
        parts = torch.stack(list(norms.values()))
        return torch.linalg.vector_norm(parts), dict(zip(norms, parts.tolist(), strict=True))

    def _update(self, sums: Tensor, norm: Tensor) -> bool:
        """Apply the gradients, equal on all ranks by now; False where they are not finite.

        An overflow of fp16 in backward only lowers the loss scale; it is a fault once that is
        exhausted, or where a rank's loss, in its `sums`, is not finite by itself.
        """
        learner = self.learner
        usable = math.isfinite(norm.item())
        if usable and self._clip_norm:
            nn.utils.clip_grads_with_norm_(learner.model.parameters(), self._clip_norm, norm)
        if usable:
            learner.scaler.step(learner.optimizer)
        overflow = not usable and learner.scaler.is_enabled() and learner.scaler.get_scale() > 1
        overflow = overflow and math.isfinite(total(sums[0].item())[0])
        learner.scaler.update()
        learner.optimizer.zero_grad(set_to_none=True)
        if usable and learner.average:
            learner.average.update_parameters(learner.model)
        # What is not finite has gone through BatchNorm's statistics too.
        _copy(*((self._buffers, self._sound) if usable else (self._sound, self._buffers)))
        return usable or overflow

    def _fit_into_memory(self, inputs: Inputs) -> None:
        """Halve the micro-batch until one of them goes through; leaves no trace.

        By this rank alone, without the others: an exchange that one rank broke off would hang all.
        """
        fits = False
        while not fits:
            size = self._micro_batch or len(inputs.labels)
            try:
                # Two of them, as the second meets the gradients of the first in memory.
                for part in itertools.islice(inputs.split(size), 2):
                    self._backward(self.learner.model, part, 1)
                fits = True
            except torch.OutOfMemoryError:
                if size == 1:
                    raise ConfigurationError(
                        "data.image_size: the GPU's memory does not hold one image; "
                        "take a smaller size or backbone"
                    ) from None
                self._micro_batch = -(-size // 2)
                log.warning(
                    "rank %d is out of memory; it goes on in micro-batches of %d images",
                    self._rank.rank,
                    self._micro_batch,
                )
            self.learner.optimizer.zero_grad(set_to_none=True)
            _copy(self._sound, self._buffers)
            if not fits:
                torch.cuda.empty_cache()


def autocast(learner: Learner, device: torch.device) -> torch.autocast:
    """The context in which the learner's model computes."""
    return torch.autocast(device.type, learner.precision, enabled=learner.precision is not None)


def _can_run_out(device: torch.device) -> bool:
    return device.type == "cuda"


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)
