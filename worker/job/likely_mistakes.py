"""Warnings about valid but probably unintended settings."""

from worker.job.job import Job
from worker.logs import count
from worker.model.rate_groups import Layout, RateGroup
from worker.numbers import ceil_div

_TINY_SHARE = 1e-4
_MAX_SHARE_OF_START = 0.1
_MIN_IMAGES = 2
_MAX_PEAKS = {"adam": 0.1, "adamw": 0.1, "sgd": 10.0}
"""Rates above these, by optimizer, make the loss diverge in almost every job."""
_STRONG_DECAY = 0.01  # at or above this value, norms and biases are noticeably pulled toward 0


def likely_mistakes(job: Job, layout: Layout, ranks: int) -> list[str]:
    """Return warnings about valid but probably unintended settings.

    Args:
        job: The job.
        layout: The parameters and blocks of its model.
        ranks: The number of ranks.

    Returns:
        The warnings, about the most costly mistakes first.
    """
    train, groups = job.manifest.train, job.groups
    found = _high_rates(job) + _slow_head(job, layout)
    if train.batch_size > job.samples_per_epoch:
        found.append(
            f"train.batch_size: {train.batch_size} is more than the "
            f"{count(job.samples_per_epoch, 'image')} of an epoch, so an epoch is a single step"
        )
    if train.ema and train.ema**job.total_steps > _MAX_SHARE_OF_START:
        found.append(
            f"train.ema: after {job.total_steps} steps, {train.ema**job.total_steps:.0%} of the "
            "average still comes from the weights of the first step; use a smaller decay"
        )
    if job.train.store.uri.startswith("s3://") and not job.output.uri.startswith("s3://"):
        found.append(
            f"output: {job.output.uri} is a folder on this machine, although the data are on S3; a "
            "job that starts elsewhere would not find its checkpoints"
        )
    warmup = job.manifest.optimizer.schedule.warmup
    if warmup and warmup.in_steps(job.steps_per_epoch) >= job.total_steps:
        found.append("the warm-up takes up the entire run, so the full rates are never reached")
    share = ceil_div(job.full_batch, ranks)
    alone = not train.sync_batch_norm or ranks == 1
    if alone and min(share, train.micro_batch or share) < _MIN_IMAGES:
        found.append(
            "BatchNorm will see 1 image at a time on each rank; use fewer ranks or a larger "
            "train.batch_size or train.micro_batch"
        )
    found += _tiny(groups, layout)
    found += [
        f"{group.name} is released at step {group.release} of {job.total_steps}, so it is never "
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
            f"weight decay applies to {count(decayed, 'parameter')} of norms and biases; "
            "optimizer.decay_norms_and_biases: false excludes them"
        )
    return found


def _high_rates(job: Job) -> list[str]:
    """Return a warning if a rate is so high that the loss will probably diverge."""
    name = job.manifest.optimizer.name
    fastest = max(job.groups, key=job.peak)
    if job.peak(fastest) <= _MAX_PEAKS[name]:
        return []
    return [
        f"the rate of {fastest.name} rises to {job.peak(fastest):g}, and {name} usually diverges "
        f"above {_MAX_PEAKS[name]:g}; check optimizer.lr (`worker find-rates` suggests one)"
    ]


def _slow_head(job: Job, layout: Layout) -> list[str]:
    """Return warnings if the new head trains later or more slowly than the backbone."""
    groups = job.groups
    found = []
    heads = [group for group in groups if layout.head & set(group.parameters)]
    slowest = min(heads, key=lambda group: group.lr)
    fastest = max(groups, key=lambda group: group.lr)
    others = [group for group in groups if group not in heads]
    if not job.manifest.model.pretrained and any(g.lr < slowest.lr or g.release for g in others):
        found.append(
            "model.weights: none, so the backbone starts from random weights, yet is frozen or "
            "trains more slowly than the head"
        )
    if slowest.lr < fastest.lr:
        found.append(
            f"the head ({slowest.name}, {slowest.lr:g}) has a lower rate than {fastest.name} "
            f"({fastest.lr:g}), although only the head is not pretrained"
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
        f"{'+'.join(match)} matches only {size:,} parameters, {size / everything:.3%} of the total"
        for match, size in sizes.items()
        if match not in heads and size <= _TINY_SHARE * everything
    ]
