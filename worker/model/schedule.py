"""The factor by which a schedule scales all learning rates at each step. Pure functions, so
resuming needs no state.
"""

import math
from dataclasses import dataclass

from worker.manifest import Schedule

# Defaults of torch.optim.lr_scheduler.OneCycleLR.
_RISE, _START, _END = 0.3, 1 / 25, 1 / 25e4
_MAX_MOMENTUM, _MIN_MOMENTUM = 0.95, 0.85
_STEP_FACTOR = 0.1


@dataclass(frozen=True)
class Factor:
    """The output of a schedule for a step."""

    rate: float
    """Share of the full rate."""
    momentum: float | None = None
    """Momentum, or Adam's first beta; None if the schedule does not set it."""


def factor_at(step: int, schedule: Schedule, total: int, steps_per_epoch: int) -> Factor:
    """Return the factor of a step, the same for every group.

    A warm-up of w steps yields 1/(w+1), 2/(w+1), … and the full rate at step w; from there, the
    rest of the schedule runs over the remaining steps.

    Args:
        step: The global step, from 0.
        schedule: The schedule of the manifest.
        total: The number of steps of the job.
        steps_per_epoch: Steps per epoch.

    Returns:
        The share of the full rate, and the momentum if the schedule sets it.
    """
    if schedule.name == "one_cycle":
        return _one_cycle(step, total)
    warmup = schedule.warmup.in_steps(steps_per_epoch) if schedule.warmup else 0
    if step < warmup:
        return Factor((step + 1) / (warmup + 1))
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    final = schedule.final or 0.0
    if schedule.name == "cosine":
        return Factor(_cosine(1.0, final, done))
    if schedule.name == "linear":
        return Factor(1 - (1 - final) * done)
    if schedule.every:
        power = (step - warmup) // schedule.every.in_steps(steps_per_epoch)
        return Factor((schedule.factor or _STEP_FACTOR) ** power)
    return Factor(1.0)


def peaks(schedule: Schedule, total: int, steps_per_epoch: int) -> tuple[int, ...]:
    """Return the steps at which the factor may peak; it never rises after the last of them.

    Args:
        schedule: The schedule of the manifest.
        total: The number of steps of the job.
        steps_per_epoch: Steps per epoch.

    Returns:
        Global steps, from 0.
    """
    if schedule.name == "one_cycle":
        # The peak may lie between two steps; either may have the higher rate.
        top = _RISE * total - 1
        return max(0, math.floor(top)), max(0, math.ceil(top))
    return (schedule.warmup.in_steps(steps_per_epoch) if schedule.warmup else 0,)


def _one_cycle(step: int, total: int) -> Factor:
    """One-cycle policy of Smith and Topin, 2018, with the cosine phases of `OneCycleLR`."""
    # `top` need not be a whole step, as in torch, and is negative for fewer than four steps, in
    # which case there is no rising phase.
    top, last = _RISE * total - 1, total - 1
    if step <= top:
        done = step / top if top else 1.0
        return Factor(_cosine(_START, 1.0, done), _cosine(_MAX_MOMENTUM, _MIN_MOMENTUM, done))
    done = min(1.0, (step - top) / (last - top))
    return Factor(_cosine(1.0, _END, done), _cosine(_MIN_MOMENTUM, _MAX_MOMENTUM, done))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))
