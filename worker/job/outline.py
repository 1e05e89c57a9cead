"""The outline of a job, as plain data for people and machines: `worker plan`."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from worker.job.decoding import decoding_of
from worker.job.job import Dataset, Job
from worker.model.rate_groups import Layout, RateGroup
from worker.numbers import ceil_div
from worker.ranks.rank import Rank

_POINTS = 60
_TINY_SHARE = 1e-4
_MAX_SHARE_OF_START = 0.1
_MIN_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class GroupOutline:
    """A rate group, as `worker plan` shows it."""

    name: str
    """Its name."""
    match: tuple[str, ...]
    """Its patterns."""
    rate_now: float
    """The rate at the next step."""
    rate_peak: float
    """The highest rate that it reaches."""
    weight_decay: float
    """Its weight decay."""
    tensors: int
    """The number of its tensors."""
    parameters: int
    """The number of its parameters."""
    share: float
    """Its share of all parameters."""
    release_step: int | None
    """The step from which it is trained; 0 from the start, None for never."""
    batch_norm: str
    """What becomes of its BatchNorm layers."""
    rates: list[float]
    """At the steps that the outline lists."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A job on some number of ranks, at the step from which it would resume."""

    job: str
    """The name of the job."""
    output: str
    """The address of its output."""
    done: bool
    """Whether it has its result already."""
    step: int
    """The step from which it would resume."""
    backbone: str
    """The torchvision model."""
    head: str
    """The dotted name of its replaced head."""
    weights: str
    """The pretrained weights."""
    image_size: int
    """Side of the images, in pixels."""
    classes: tuple[str, ...]
    """Names of the classes, in label order."""
    train: dict[str, Any]
    """Size and address of the training set."""
    val: dict[str, Any] | None
    """Size and address of the validation set; None if there is none."""
    epochs: int
    """The number of epochs."""
    steps_per_epoch: int
    """Steps of an epoch."""
    total_steps: int
    """Steps of the job."""
    batch_size: int
    """Images of a global batch."""
    last_batch: int
    """Images of the last batch of an epoch."""
    lanes: int
    """The places in the data set that every batch reads from."""
    window: int
    """The samples of a lane that are shuffled together."""
    ranks: int
    """The number of ranks."""
    shards_per_rank: list[int]
    """Shards that each rank reads in an epoch."""
    decoding: str
    """How each rank would decode on this machine."""
    settings: dict[str, Any]
    """Optimizer and training settings besides the groups, as in the manifest."""
    steps: list[int]
    """Some steps from the first to the last, for the rates of the groups."""
    groups: list[GroupOutline]
    """The rate groups."""
    warnings: list[str]
    """Valid but probably unintended settings."""

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return asdict(self)


def outline_job(job: Job, ranks: int) -> Outline:
    """The outline of `job` on `ranks` ranks."""
    manifest, plan = job.manifest, job.plan(0)
    step = job.commits[0].step if job.commits else 0
    last = job.total_steps - 1
    steps = sorted({round(last * i / (_POINTS - 1)) for i in range(_POINTS)})
    rates = [job.rates(at) for at in steps]
    now = job.rates(min(step, last))
    layout = job.backbone.layout
    return Outline(
        job=manifest.job,
        output=job.output.uri,
        done=bool(job.done),
        step=step,
        backbone=job.backbone.name,
        head=job.backbone.head,
        weights=manifest.model.weights,
        image_size=job.preprocessing.crop_size,
        classes=job.train.index.classes,
        train=_outline_data(job.train),
        val=_outline_data(job.val) if job.val else None,
        epochs=manifest.train.epochs,
        steps_per_epoch=plan.steps,
        total_steps=job.total_steps,
        batch_size=manifest.train.batch_size,
        last_batch=job.last_batch,
        lanes=job.lanes,
        window=manifest.data.shuffle.window,
        ranks=ranks,
        shards_per_rank=[plan.shards(rank, ranks) for rank in range(ranks)],
        decoding=str(
            decoding_of(
                Rank(
                    rank=0,
                    world_size=ranks,
                    local_rank=0,
                    local_world_size=_ranks_here(ranks),
                    master_addr="",
                    master_port=0,
                ),
                job.lanes,
            )
        ),
        settings={
            "optimizer": manifest.optimizer.model_dump(mode="json", exclude={"groups"}),
            "train": manifest.train.model_dump(mode="json"),
        },
        steps=steps,
        groups=[
            _outline_group(
                group, layout, now[group.name], job.peak(group), [at[group.name] for at in rates]
            )
            for group in job.groups
        ],
        warnings=suspicions(job, layout, ranks),
    )


def _ranks_here(ranks: int) -> int:
    """Return how many of the ranks this machine would get: one per GPU, or all on the CPU."""
    return min(ranks, torch.cuda.device_count() or ranks)


_STRONG_DECAY = 0.01  # from here on, what is meant to be scaled is pulled to 0 noticeably


def suspicions(job: Job, layout: Layout, ranks: int) -> list[str]:
    """Return warnings about valid but probably unintended settings.

    Args:
        job: The job.
        layout: The parameters and blocks of its model.
        ranks: The number of ranks.

    Returns:
        The warnings, the costliest first.
    """
    train, groups = job.manifest.train, job.groups
    found = _slow_head(job, layout)
    if train.ema and train.ema**job.total_steps > _MAX_SHARE_OF_START:
        found.append(
            f"train.ema: after {job.total_steps} steps {train.ema**job.total_steps:.0%} of the "
            "average are still the weights of the start; take a smaller decay"
        )
    warmup = job.manifest.optimizer.schedule.warmup
    if warmup and warmup.in_steps(job.steps_per_epoch) >= job.total_steps:
        found.append("the warm-up takes the whole run, so the full rates are never reached")
    share = ceil_div(job.full_batch, ranks)
    if min(share, train.micro_batch or share) < _MIN_IMAGES:
        found.append(
            "BatchNorm will see 1 image at a time on each rank; take fewer ranks or a larger "
            "train.batch_size or train.micro_batch"
        )
    found += _tiny(groups, layout)
    found += [
        f"{group.name} is released at step {group.release} of {job.total_steps} steps, so never "
        "trained"
        for group in groups
        if group.release is not None and group.release >= job.total_steps
    ]
    decayed = sum(
        len(layout.undecayed & set(group.parameters))
        for group in groups
        if group.weight_decay >= _STRONG_DECAY and group.release is not None
    )
    if decayed:
        found.append(
            f"weight decay reaches {decayed} norms and biases; "
            "optimizer.decay_norms_and_biases: false keeps them out"
        )
    return found


def _slow_head(job: Job, layout: Layout) -> list[str]:
    """Return a warning if the new head trains later or slower than the backbone."""
    groups = job.groups
    found = []
    heads = [group for group in groups if layout.head & set(group.parameters)]
    slowest = min(heads, key=lambda group: group.lr)
    fastest = max(groups, key=lambda group: group.lr)
    others = [group for group in groups if group not in heads]
    if not job.manifest.model.pretrained and any(g.lr < slowest.lr or g.release for g in others):
        found.append(
            "model.weights: none, so the backbone starts at random, and yet is frozen or slower "
            "than the head"
        )
    if slowest.lr < fastest.lr:
        found.append(
            f"the head ({slowest.name}, {slowest.lr:g}) is slower than {fastest.name} "
            f"({fastest.lr:g}), though it alone starts from nothing"
        )
    if any(group.release for group in heads) and any(g.release == 0 for g in others):
        found.append("the head is frozen at first, while the backbone is trained against it")
    return found


def _tiny(groups: tuple[RateGroup, ...], layout: Layout) -> list[str]:
    """Return warnings about patterns that match almost nothing."""
    everything = sum(layout.sizes.values())
    sizes: dict[tuple[str, ...], int] = {}
    for group in groups:
        size = sum(layout.sizes[name] for name in group.parameters)
        sizes[group.match] = sizes.get(group.match, 0) + size
    heads = {group.match for group in groups if layout.head & set(group.parameters)}
    return [
        f"{'+'.join(match)} holds only {size:,} parameters, {size / everything:.3%}"
        for match, size in sizes.items()
        if match not in heads and size <= _TINY_SHARE * everything
    ]


def _outline_data(dataset: Dataset) -> dict[str, Any]:
    index = dataset.index
    return {
        "address": dataset.store.uri,
        "images": index.samples,
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
    }


def _outline_group(
    group: RateGroup, layout: Layout, now: float, peak: float, rates: list[float]
) -> GroupOutline:
    size = sum(layout.sizes[name] for name in group.parameters)
    return GroupOutline(
        name=group.name,
        match=group.match,
        rate_now=now,
        rate_peak=peak,
        weight_decay=group.weight_decay,
        tensors=len(group.parameters),
        parameters=size,
        share=size / sum(layout.sizes.values()),
        release_step=group.release,
        batch_norm="train" if group.batch_norm else "frozen",
        rates=rates,
    )
