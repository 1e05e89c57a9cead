"""Facts at the top of a run's page: when it ran, on which devices, on how much data."""

import itertools
import time
from collections.abc import Mapping
from typing import Any

from worker.logs import count
from worker.record.cost import cost_of, describe_cost
from worker.report.read_run import Run
from worker.report.record_schemas import PlanRecord

_DAY = "%Y-%m-%d"


def facts_of(run: Run) -> list[tuple[str, str]]:
    """Return the known facts about a run, by name."""
    plan = run.plan
    facts = {
        "when": _when(run),
        "model": _model(run.settings, plan),
        "on": _devices(run),
        "data": _data(plan),
        "packed from": plan.train.source if plan.train else "",
        "cost": cost_text(run),
    }
    return [(name, text) for name, text in facts.items() if text]


def cost_text(run: Run) -> str:
    """Return what the run has cost, as text; empty if nothing is known."""
    on_gpus = any(facts.get("device", "cpu") != "cpu" for facts in run.environments.values())
    return describe_cost(cost_of(run.history), on_gpus=on_gpus)


def _when(run: Run) -> str:
    times = [event.time for part in run.history.parts for event in part.events]
    if not times:
        return ""
    first, last = time.localtime(min(times)), time.localtime(max(times))
    form = "%H:%M" if time.strftime(_DAY, first) == time.strftime(_DAY, last) else f"{_DAY} %H:%M"
    return f"{time.strftime(f'{_DAY} %H:%M', first)} to {time.strftime(f'{form} %Z', last)}"


def _model(settings: Mapping[str, Any], plan: PlanRecord) -> str:
    backbone = settings.get("model.backbone")
    size = f" at {plan.image_size} px" if plan.image_size else ""
    return f"{backbone}{size}" if backbone else ""


def _devices(run: Run) -> str:
    """Describe the ranks and devices of each attempt, in order."""
    found = [
        f"{count(world_size, 'rank')} on {_device(device)}"
        for facts in run.environments.values()
        if isinstance(world_size := facts.get("world_size"), int)
        and isinstance(device := facts.get("device"), str)
    ]
    return ", then ".join(text for text, _ in itertools.groupby(found))


def _device(name: str) -> str:
    return "CPU" if name == "cpu" else name


def _data(plan: PlanRecord) -> str:
    sets = {"training": plan.train, "validation": plan.val, "test": plan.test}
    parts = [f"{data.images:,} {name}" for name, data in sets.items() if data]
    listed = " and ".join([*([", ".join(parts[:-1])] if parts[1:] else []), *parts[-1:]])
    classes = len(plan.classes)
    return f"{listed} images of {classes:,} classes" if parts and classes else ""
