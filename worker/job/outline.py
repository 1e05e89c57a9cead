"""Outline of a job as plain data, for the text and JSON output of `worker plan`."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from worker.errors import WorkerError
from worker.ingest.dataset_record import read_dataset_record
from worker.job.dataset import Dataset
from worker.job.decoding import decoding_of
from worker.job.job import Job
from worker.job.likely_mistakes import likely_mistakes
from worker.job.sampling import describe_sampling
from worker.logs import count
from worker.manifest import Checkpoint
from worker.model.rate_groups import Layout, RateGroup
from worker.ranks.rank import Rank

_POINTS = 60


@dataclass(frozen=True, kw_only=True)
class GroupOutline:
    """A rate group, as `worker plan` shows it."""

    name: str
    """Name of the group."""
    match: tuple[str, ...]
    """Patterns that select the group's parameters."""
    rate_now: float
    """Learning rate at the next step."""
    rate_peak: float
    """Highest learning rate that the group reaches."""
    weight_decay: float
    """Weight decay of the group."""
    tensors: int
    """Number of tensors in the group."""
    parameters: int
    """Number of parameters in the group."""
    share: float
    """The group's share of all parameters, from 0 to 1."""
    release_step: int | None
    """Step from which the group trains; 0 for the start, None for never."""
    batch_norm: str
    """Mode of the group's BatchNorm layers: train or frozen."""
    rates: list[float]
    """Learning rates at the steps that the outline lists."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """Outline of a job on a given number of ranks, at the step that it would resume from."""

    job: str
    """The name of the job."""
    output: str
    """Address of the job's output."""
    done: bool
    """Whether the job already has its result."""
    step: int
    """Step from which the job would resume; 0 if there is no checkpoint."""
    backbone: str
    """The torchvision model."""
    head: str
    """Dotted name of the replaced head."""
    weights: str
    """Pretrained weights, as in the manifest."""
    image_size: int
    """Side of the images in evaluation, in pixels."""
    train_size: int
    """Side of the images in training, in pixels."""
    classes: tuple[str, ...]
    """Names of the classes, in label order."""
    train: dict[str, Any]
    """Size and address of the training set."""
    val: dict[str, Any] | None
    """Size and address of the validation set; None if there is none."""
    test: dict[str, Any] | None
    """Size and address of the test set; None if there is none."""
    sampling: str
    """How often samples are seen."""
    samples_per_epoch: int
    """Images that an epoch trains on, each copy counted."""
    class_places: dict[str, int]
    """Images of each class that an epoch trains on; empty if each sample is seen once."""
    epochs: int
    """The number of epochs."""
    steps_per_epoch: int
    """Steps per epoch."""
    total_steps: int
    """Total steps of the job."""
    batch_size: int
    """Images in a global batch."""
    last_batch: int
    """Images in the last batch of an epoch."""
    lanes: int
    """Number of places in the data set that every batch reads from."""
    window: int
    """Number of samples of a lane that are shuffled together."""
    ranks: int
    """The number of ranks."""
    shards_per_rank: list[int]
    """Number of shards that each rank reads per epoch."""
    decoding: str
    """Threads and processes that each rank would decode with on this machine."""
    saving: str
    """When checkpoints are written."""
    settings: dict[str, Any]
    """Optimizer and training settings, as in the manifest, except for the groups."""
    steps: list[int]
    """Selected steps, from first to last, at which the groups' rates are listed."""
    groups: list[GroupOutline]
    """The rate groups."""
    warnings: list[str]
    """Warnings about valid but probably unintended settings."""

    def as_dict(self) -> dict[str, Any]:
        """Return the outline as JSON-serializable data."""
        return asdict(self)


def outline_job(job: Job, ranks: int) -> Outline:
    """Return the outline of `job` on `ranks` ranks."""
    manifest, plan = job.manifest, job.plan(0)
    step = job.commits[0].step if job.commits else 0
    last = job.total_steps - 1
    # Evenly spaced, with the first and last step; a set, as short jobs have fewer steps than
    # points.
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
        train_size=job.train_size,
        classes=job.train.index.classes,
        train=_outline_data(job.train),
        val=_outline_data(job.val) if job.val else None,
        test=_outline_data(job.test) if job.test else None,
        sampling=describe_sampling(job.sampling),
        samples_per_epoch=job.samples_per_epoch,
        class_places=_class_places(job),
        epochs=manifest.train.epochs,
        steps_per_epoch=plan.steps,
        total_steps=job.total_steps,
        batch_size=manifest.train.batch_size,
        last_batch=job.last_batch,
        lanes=job.lanes,
        window=manifest.data.shuffle.window,
        ranks=ranks,
        shards_per_rank=[plan.shards(rank, ranks) for rank in range(ranks)],
        decoding=_describe_decoding(job, ranks),
        saving=_describe_saving(manifest.checkpoint),
        settings={
            "optimizer": manifest.optimizer.model_dump(mode="json", exclude={"groups"}),
            "train": manifest.train.model_dump(mode="json"),
        },
        steps=steps,
        groups=[
            _outline_group(
                group,
                layout,
                now=now[group.name],
                peak=job.peak(group),
                rates=[at[group.name] for at in rates],
            )
            for group in job.groups
        ],
        warnings=likely_mistakes(job, layout, ranks),
    )


def _describe_decoding(job: Job, ranks: int) -> str:
    rank = Rank(
        rank=0,
        world_size=ranks,
        local_rank=0,
        local_world_size=_ranks_here(ranks),
        master_addr="",
        master_port=0,
    )
    return str(decoding_of(rank, job.lanes))


def _ranks_here(ranks: int) -> int:
    """Return the number of ranks on this machine: one per GPU, or all if it has no GPU."""
    return min(ranks, torch.cuda.device_count() or ranks)


def _outline_data(dataset: Dataset) -> dict[str, Any]:
    index = dataset.index
    return {
        "address": dataset.store.uri,
        "identity": dataset.identity,
        "images": dataset.samples,
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "source": _source_of(dataset),
    }


def _describe_saving(settings: Checkpoint) -> str:
    parts = ["at the end of every epoch"]
    if settings.every_steps:
        parts.append(f"every {count(settings.every_steps, 'step')}")
    if settings.every_minutes:
        parts.append(f"every {settings.every_minutes:g} minutes")
    if settings.share:
        parts.append(f"as often as {settings.share:.0%} of the time allows, at most once a minute")
    return ", ".join(parts)


def _class_places(job: Job) -> dict[str, int]:
    if not job.multiplicities:
        return {}
    places = job.multiplicities.class_places.tolist()
    return dict(zip(job.train.index.classes, places, strict=True))


def _source_of(dataset: Dataset) -> str:
    """Describe where a data set comes from; empty if `worker pack` did not make it."""
    try:
        record = read_dataset_record(dataset.store)
    except WorkerError:  # worth no failure
        return ""
    if record is None:
        return ""
    left_out = f", {count(record.bad_count, 'bad image')} left out" if record.bad_count else ""
    return f"{record.source} ({record.kind}){left_out}, digest {record.digest[:12]}"


def _outline_group(
    group: RateGroup, layout: Layout, *, now: float, peak: float, rates: list[float]
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
