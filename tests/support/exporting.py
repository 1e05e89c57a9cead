"""Metrics of a made-up run."""

import contextlib
import math
from collections.abc import Iterator

from worker.metrics.exporters import exported
from worker.metrics.registry import Metrics
from worker.metrics.run_labels import Owner
from worker.metrics.shared_outcome import SharedOutcome

RUN = Owner("ants", "s3://bucket/run/")


Pushes = list[tuple[str, str, str, str]]


def metrics_of(rank: int = 0) -> Metrics:
    return Metrics(RUN.job, RUN.run, rank)


@contextlib.contextmanager
def running(metrics: Metrics, rank: int = 0) -> Iterator[SharedOutcome]:
    outcome = SharedOutcome()
    with exported(metrics, RUN, rank, local_rank=rank, outcome=outcome, patience=lambda: math.inf):
        yield outcome
