"""Successive halving: how long trials run, and which of them continue. Pure functions."""

import math
from collections.abc import Mapping, Sequence

from worker.judge.judgment import score_of
from worker.manifest.training import Metric
from worker.sweep.manifest import Halving

_TINY = 1e-9  # what rounding may add to a product


def rung_epochs(epochs: int, halving: Halving | None) -> tuple[int, ...]:
    """Return the epochs after which trials are compared; the last one is the end of the job."""
    rungs = []
    if halving:
        length = float(halving.first.epochs)
        while math.ceil(length - _TINY) < epochs:
            rungs.append(math.ceil(length - _TINY))
            length /= halving.keep
    return (*dict.fromkeys(rungs), epochs)


def rung_sizes(trials: int, rungs: int, halving: Halving | None) -> tuple[int, ...]:
    """Return how many trials each rung has if none of them fails."""
    sizes = [trials]
    while len(sizes) < rungs:
        sizes.append(_kept(sizes[-1], halving))
    return tuple(sizes)


def _kept(count: int, halving: Halving | None) -> int:
    return max(1, math.ceil(count * halving.keep - _TINY)) if halving else count


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean over the repetitions of a trial; None if one of them has failed."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def ranked(means: Mapping[int, float | None], metric: Metric) -> tuple[int, ...]:
    """Return the trials that have not failed, the best first; ties go to the lower number."""
    scores = {trial: score_of(mean, metric) for trial, mean in means.items()}
    known = {trial: score for trial, score in scores.items() if score is not None}
    return tuple(sorted(known, key=lambda trial: (-known[trial], trial)))


def survivors(
    means: Mapping[int, float | None], metric: Metric, halving: Halving | None
) -> tuple[int, ...]:
    """Return the trials of the next rung, in the order of their numbers.

    Args:
        means: The mean of each trial of this rung; None for one that has failed.
        metric: The figure that they are compared by.
        halving: The settings.
    """
    return tuple(sorted(ranked(means, metric)[: _kept(len(means), halving)]))
