"""The outcome of a run, as metrics that outlive it."""

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Gauge

from worker.errors import ExitCode
from worker.metrics.registry import MetricEntry, Metrics, entry_of

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
"""The metrics whose last values are kept: gauges that have only the labels of the job."""

_JOB = ("job", "run")


class Outcome:
    """The metrics of a run that has ended."""

    def __init__(self, job: str, run: str) -> None:
        self.registry = CollectorRegistry()
        self._job = (job, run)
        self._code = self._gauge("exit_code", "Exit code of the attempt that ended last")
        self._end = self._gauge("end_timestamp_seconds", "End time of the attempt that ended last")
        self._reason = self._gauge(
            "stop_info",
            "Stop reason of the attempt that ended last: its exit code's name in lower case",
            "reason",
        )

    def tell(self, code: int, kept: Mapping[str, float]) -> CollectorRegistry:
        """Return the metrics of a run that ended with `code`, given the known values of `KEPT`."""
        self._code.labels(*self._job).set(code)
        self._end.labels(*self._job).set(time.time())
        self._reason.labels(*self._job, ExitCode(code).name.lower()).set(1)
        # The help texts must match those of the live metrics: node exporter drops a metric that has
        # two different ones.
        texts = {entry.name: entry.text for entry in Metrics(*self._job, 0).entries()}
        for name, value in kept.items():
            gauge = self._gauge(name, texts[f"worker_{name}"])
            gauge.labels(*self._job).set(value)
        return self.registry

    def entries(self) -> Iterator[MetricEntry]:
        """Return the documentation of the metrics that only an ended run has."""
        return map(entry_of, (self._code, self._end, self._reason))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"worker_{name}", text, (*_JOB, *labels), registry=self.registry)
