"""What a job would do, as a table for people: `worker plan`."""

from collections.abc import Sequence

from worker.logs import count
from worker.train.job import Dataset, Job


def describe_job(job: Job, ranks: int) -> str:
    """Data, steps, groups and rates of `job` on `ranks` ranks."""
    manifest = job.manifest
    plan = job.plan(0)
    last = plan.total - (plan.steps - 1) * manifest.train.batch_size
    shards = [plan.shards(rank, ranks) for rank in range(ranks)]
    rows = {
        "job": manifest.job,
        "output": job.output.uri + (", finished there already" if job.done else ""),
        "backbone": f"{job.backbone.name}, head {job.backbone.head}, "
        f"weights {manifest.model.weights}",
        "images": f"{job.preprocessing.crop_size} pixels square",
        "classes": f"{len(job.train.index.classes)}: {', '.join(job.train.index.classes)}",
        "train": _describe_data(job.train),
        "val": _describe_data(job.val) if job.val else "none, accuracy is not measured",
        "steps": f"{count(manifest.train.epochs, 'epoch')} of {plan.steps} = {job.total_steps}, "
        f"{manifest.train.batch_size} images each, {last} in the last of an epoch",
        "mixing": f"{job.lanes} lanes, windows of {manifest.data.shuffle.window} images",
        "ranks": f"{ranks}, {manifest.train.batch_size // ranks} images each; "
        f"shards read per epoch: {', '.join(map(str, shards))}",
        "optimizer": f"{manifest.optimizer.name}, base rate {manifest.optimizer.lr:g}, constant",
    }
    lines = [f"{name:<10} {text}" for name, text in rows.items()]
    return "\n".join([*lines, "", *_describe_groups(job)])


def _describe_data(dataset: Dataset) -> str:
    index = dataset.index
    images, shards = count(index.samples, "image"), count(len(index.shards), "shard")
    size = sum(shard.bytes for shard in index.shards) / 1e6
    return f"{dataset.store.uri}: {images} in {shards}, {size:.1f} MB"


def _describe_groups(job: Job) -> list[str]:
    sizes = {name: p.numel() for name, p in job.backbone.model.named_parameters()}
    everything = sum(sizes.values())
    rows = [("group", "rate", "decay", "tensors", "parameters", "share")]
    for group in job.groups:
        count = sum(sizes[name] for name in group.parameters)
        rate = "frozen" if group.frozen else f"{group.lr:g}"
        rows.append(
            (
                group.name,
                rate,
                f"{group.weight_decay:g}",
                str(len(group.parameters)),
                f"{count:,}",
                f"{count / everything:.2%}",
            )
        )
    return table(rows)


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Aligned lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
