"""The diagnosis of the rates: gradients of some batches at fixed weights, by group and block."""

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from worker.data.batch_requests import Request
from worker.data.epoch_plan import Ids, sample_ids
from worker.errors import ConfigurationError, StopRequested
from worker.job.job import Job
from worker.learn.gradient_signal import GradientSignal, GradientSums
from worker.learn.rate_diagnosis import DiagnosedPart, Diagnosis, relative_step
from worker.learn.step_inputs import plain_inputs
from worker.learn.training_step import autocast
from worker.model.backbone import logits_of
from worker.model.learner import Learner, build_learner
from worker.model.rate_groups import RateGroup
from worker.ranks.cpu_cores import cores_per_rank
from worker.ranks.process_group import device_of, total
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.train.batches import TRAIN
from worker.train.loaders import JobLoaders
from worker.train.train_head import train_head

_PART = 32  # images per pass, which bounds the memory for activations


def diagnose_rates(
    job: Job,
    rank: Rank,
    loaders: JobLoaders,
    *,
    batches: int,
    stop: StopFlag,
    advance: Callable[[int], None],
) -> Diagnosis:
    """Compare the gradients of a job's first batches, with its head trained first.

    Each batch is computed by one rank as a whole. Images are not augmented and the model is in
    evaluation mode, as when its head is trained: what a batch asks for is then what the weights
    lack, not what augmentation disturbs. All groups except those that are always frozen take part.
    All ranks call this together; the figures are the same on any number of them.

    Args:
        job: The job.
        rank: This rank.
        loaders: The loaders.
        batches: The number of batches.
        stop: The flag that a stop signal sets.
        advance: Called with 1 after each batch of this rank.

    Raises:
        ConfigurationError: If a gradient is not finite.
        StopRequested: If a stop was requested.
    """
    torch.set_num_threads(cores_per_rank(rank))
    groups = tuple(released(group) for group in job.groups)
    learner = build_learner(job.backbone.model, groups, job.manifest, device_of(rank))
    loaders.start()
    head_first = bool(job.manifest.model.pretrained)
    if head_first:
        train_head(
            job, learner.model, rank, loaders, precision=learner.precision, advance=lambda _: None
        )
    trained = {name for group in groups if group.release is not None for name in group.parameters}
    named = {n: p for n, p in learner.model.named_parameters() if n in trained}
    for name, parameter in learner.model.named_parameters():
        parameter.requires_grad_(name in trained)
    learner.model.eval()
    signal, finite = GradientSignal(named), True
    for images, labels in _images(job, loaders, _own_batches(job, batches, rank)):
        if stop.requested:
            break
        _gradient(job, learner, images, labels)
        finite &= signal.add()
        advance(1)
    # The same on all ranks, as they must leave together.
    stopped, wrong = total(float(stop.requested), float(not finite))
    if stopped:
        raise StopRequested("stopped on request; the diagnosis is discarded" if rank.leads else "")
    if wrong:
        raise ConfigurationError(
            "the gradient is not finite before the first update; check model.weights, "
            "train.precision and the images"
            if rank.leads
            else ""
        )
    return _diagnosis(job, groups, signal, batches=batches, head_first=head_first)


def _images(job: Job, loaders: JobLoaders, own: Sequence[Ids]) -> Generator[tuple[Tensor, Tensor]]:
    """Yield the sound images of each batch with their labels; the loader has another batch size."""
    if not own:
        return
    side = job.preprocessing.crop_size
    waiting: list[Tensor] = [
        torch.empty(0, 3, side, side, dtype=torch.uint8),
        torch.empty(0, dtype=torch.int64),
        torch.empty(0, dtype=torch.bool),
    ]
    ids = np.concatenate(own)
    with contextlib.closing(loaders.batches(Request(dataset=TRAIN, samples=ids))) as batches:
        for batch in batches:
            parts = batch.images.clone(), batch.labels.clone(), batch.valid.clone()
            waiting = [torch.cat(pair) for pair in zip(waiting, parts, strict=True)]
            while len(waiting[0]) >= job.full_batch:
                images, labels, valid = (each[: job.full_batch] for each in waiting)
                waiting = [each[job.full_batch :] for each in waiting]
                yield images[valid], labels[valid]


def released(group: RateGroup) -> RateGroup:
    """Return a group as if it were released from the start, unless it is always frozen."""
    return group if group.release is None else replace(group, release=0)


def _own_batches(job: Job, count: int, rank: Rank) -> list[Ids]:
    """Return the samples of this rank's share of the job's first full batches."""
    found: list[Ids] = []
    for epoch in itertools.count():
        plan = job.plan(epoch)
        full = [step for step in range(plan.steps) if plan.size(step) == job.full_batch]
        found += [sample_ids(plan.batch(step)) for step in full[: count - len(found)]]
        if len(found) == count:
            break
    return found[rank.rank :: rank.world_size]


def _gradient(job: Job, learner: Learner, images: Tensor, labels: Tensor) -> None:
    """Compute the gradient of the mean loss of a batch, in evaluation mode and in small parts.

    Not in fp16, in which small gradients would be lost.
    """
    precision = None if learner.precision is torch.float16 else learner.precision
    learner.optimizer.zero_grad(set_to_none=True)
    device = next(learner.model.parameters()).device
    for part, of_part in zip(images.split(_PART), labels.split(_PART), strict=True):
        inputs = plain_inputs(job.preprocessing.normalize(part.to(device)), of_part.to(device))
        with autocast(precision, device):
            outputs = learner.model(inputs.images)
        logits, auxiliary = logits_of(outputs)
        losses = job.criterion.losses(logits, auxiliary, inputs)
        (losses.sum() / len(labels)).backward()


def _diagnosis(
    job: Job,
    groups: tuple[RateGroup, ...],
    signal: GradientSignal,
    *,
    batches: int,
    head_first: bool,
) -> Diagnosis:
    optimizer = job.manifest.optimizer
    of_groups = {g.name: g.parameters for g in groups if g.release is not None}
    known = set(itertools.chain.from_iterable(of_groups.values()))
    of_blocks = {
        block.name: tuple(sorted(known & block.parameters))
        for block in job.backbone.layout.blocks
        if known & block.parameters
    }
    rates = {name: job.peak(group) for group in job.groups for name in group.parameters}
    sizes = job.backbone.layout.sizes
    # One call, as it reduces over all ranks; the names of groups and blocks may be the same.
    sums = signal.sums([*of_groups.values(), *of_blocks.values()], batches)

    def part(name: str, parameters: Sequence[str], found: GradientSums) -> DiagnosedPart:
        # The root mean square, as the steps of different rates add up in a norm.
        squares = sum(sizes[each] * rates[each] ** 2 for each in parameters)
        rate = math.sqrt(squares / found.parameters)
        return DiagnosedPart(
            name=name,
            parameters=found.parameters,
            rate=rate,
            relative_norm=found.relative_norm,
            signal=found.signal,
            relative_step=relative_step(found, rate, optimizer),
        )

    parts = [
        part(name, parameters, found)
        for (name, parameters), found in zip(
            [*of_groups.items(), *of_blocks.items()], sums, strict=True
        )
    ]
    return Diagnosis(
        batches=batches,
        head_first=head_first,
        groups=tuple(parts[: len(of_groups)]),
        blocks=tuple(parts[len(of_groups) :]),
    )
