"""How a run ended, as the metrics that outlive it."""

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge

from worker.errors import ExitCode

KEPT = (
    "step",
    "steps",
    "attempt",
    "resume_step",
    "best_accuracy_ratio",
    "start_timestamp_seconds",
    "last_commit_timestamp_seconds",
    "last_success_timestamp_seconds",
)
"""The metrics whose last values stay: gauges that have only the labels of their job."""

_OWN = {
    "exit_code": "Exit code of the attempt that ended last",
    "end_timestamp_seconds": "When it ended",
}


def outcome(job: str, run: str, code: int, kept: Mapping[str, float]) -> CollectorRegistry:
    """The metrics of a run that has ended with `code`; `kept` has what is known of `KEPT`."""
    registry = CollectorRegistry()
    values = {"exit_code": code, "end_timestamp_seconds": time.time(), **kept}
    for name, value in values.items():
        text = _OWN.get(name, "As it was when the attempt ended")
        gauge = Gauge(f"worker_{name}", text, ("job", "run"), registry=registry)
        gauge.labels(job, run).set(value)
    reason = Gauge("worker_stop_info", "Why it ended", ("job", "run", "reason"), registry=registry)
    reason.labels(job, run, ExitCode(code).name.lower()).set(1)
    return registry
