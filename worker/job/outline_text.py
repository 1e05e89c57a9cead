"""Text form of a job's outline."""

from typing import Any

from worker.charts import sparkline, table
from worker.job.outline import GroupOutline, Outline
from worker.logs import count

_MAX_CLASSES = 10
_SILENT = (None, False, 0, 0.0)
_OWN_ROWS = ("epochs", "batch_size", "seed", "name", "lr", "schedule", "weight_decay")


def describe_outline(plan: Outline) -> str:
    """Return text that lists the data, steps, groups and rates of a job."""
    val = _describe_data(plan.val) if plan.val else "none, so accuracy is not measured"
    shards = ", ".join(map(str, plan.shards_per_rank))
    rows = {
        "job": plan.job,
        "output": plan.output + _standing(plan),
        "backbone": f"{plan.backbone}, head {plan.head}, weights {plan.weights}",
        "images": f"{plan.image_size} pixels square"
        + (f", {plan.train_size} in training" if plan.train_size != plan.image_size else ""),
        "classes": f"{len(plan.classes)}: {', '.join(plan.classes)}",
        "train": _describe_data(plan.train),
        "sampling": _describe_sampling(plan),
        "val": val,
        "test": _describe_data(plan.test) if plan.test else "",
        "packed": plan.train["source"] and f"from {plan.train['source']}",
        "steps": f"{count(plan.epochs, 'epoch')} of {plan.steps_per_epoch} = {plan.total_steps}, "
        f"{plan.batch_size} images each, {plan.last_batch} in the last step of an epoch",
        "mixing": f"{plan.lanes} lanes, windows of {plan.window} images",
        "ranks": f"{plan.ranks}, {plan.batch_size // plan.ranks} images each; "
        f"shards read per epoch: {shards}",
        "decoding": f"{plan.decoding} on each rank, if the ranks run on this machine",
        "saving": plan.saving,
        "optimizer": _describe_optimizer(plan.settings),
        "settings": _describe_settings(plan.settings),
    }
    lines = [f"{name:<10} {text}" for name, text in rows.items() if text]
    lines += ["", *_describe_groups(plan), "", *_chart(plan)]
    lines += ["", *(f"warning: {text}" for text in plan.warnings)] if plan.warnings else []
    return "\n".join(lines)


def _standing(plan: Outline) -> str:
    if plan.done:
        return ", already finished"
    return f", resumes after step {plan.step}" if plan.step else ""


def _describe_sampling(plan: Outline) -> str:
    if not plan.class_places:
        return ""
    shown = [f"{name} {places}" for name, places in list(plan.class_places.items())[:_MAX_CLASSES]]
    more = ", …" if len(plan.class_places) > _MAX_CLASSES else ""
    images = count(plan.samples_per_epoch, "image")
    return f"{plan.sampling}; an epoch trains on {images}: {', '.join(shown)}{more}"


def _describe_data(data: dict[str, Any]) -> str:
    images, shards = count(data["images"], "image"), count(data["shards"], "shard")
    return f"{data['address']}: {images} in {shards}, {data['bytes'] / 1e6:.1f} MB"


def _describe_optimizer(settings: dict[str, Any]) -> str:
    optimizer = settings["optimizer"]
    schedule = optimizer["schedule"]
    parts = [f"{optimizer['name']}, base rate {optimizer['lr']:g}, {schedule['name']}"]
    for key in ("warmup", "every"):
        if schedule[key]:
            parts.append(f"{key} {_span(schedule[key])}")
    parts += [f"{key} {schedule[key]:g}" for key in ("final", "factor") if schedule[key]]
    return ", ".join(parts)


def _span(span: dict[str, Any]) -> str:
    number, unit = (span["epochs"], "epoch") if span["epochs"] else (span["steps"], "step")
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _describe_settings(settings: dict[str, Any]) -> str:
    given = {**settings["train"], **settings["optimizer"]}
    shown = {
        key: value
        for key, value in given.items()
        if key not in _OWN_ROWS and value not in _SILENT and value not in ("auto", "fail")
    }
    shown.pop("decay_norms_and_biases", None)
    return ", ".join(f"{key} {_short(value)}" for key, value in shown.items())


def _short(value: Any) -> str:
    if value is True:
        return "on"
    if isinstance(value, dict):
        return " ".join(f"{key} {item:g}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _describe_groups(plan: Outline) -> list[str]:
    # At most 80 columns for most jobs; `--json` has more.
    head = ("group", "rate now", "peak", "decay", "parameters", "share", "frozen")
    return table([head, *(_row(group, plan) for group in plan.groups)])


def _row(group: GroupOutline, plan: Outline) -> tuple[str, ...]:
    frozen = "no"
    if group.release_step is None:
        frozen = "always"
    elif group.release_step > plan.step:
        epoch = group.release_step / plan.steps_per_epoch
        frozen = f"until step {group.release_step} (epoch {epoch:.3g})"
    if group.batch_norm == "frozen" and group.release_step is not None:
        frozen += ", but BatchNorm statistics always"
    own_name = group.name.partition(" (")[0] != "+".join(group.match)
    return (
        f"{group.name}: {' '.join(group.match)}" if own_name else group.name,
        f"{group.rate_now:.3g}",
        f"{group.rate_peak:.3g}",
        f"{group.weight_decay:g}",
        f"{group.parameters:,}",
        f"{group.share:.2%}",
        frozen,
    )


def _chart(plan: Outline) -> list[str]:
    """Return a chart line per group, relative to the group's peak; dots mean a rate of 0."""
    width = max(len(group.name) for group in plan.groups)
    lines = [f"{'rates':<{width}}  step 0 to {plan.total_steps - 1}, each relative to its peak"]
    for group in plan.groups:
        peak = group.rate_peak or 1.0
        lines.append(f"{group.name:<{width}}  {sparkline(group.rates, peak)}")
    return lines
