"""The metrics of a rank in one registry, with prefix `worker_`, base units and bounded labels."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

M = TypeVar("M", Counter, Gauge, Histogram)

_JOB, _RANK = ("job", "run"), ("job", "run", "rank")
# Upper bounds in seconds. Every bucket is a time series of its own, per rank and label, so there
# are only about a dozen.
_STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PHASE_BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_SAVE_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True, kw_only=True)
class MetricEntry:
    """Documentation entry of a metric."""

    name: str
    """Its name."""
    kind: str
    """Its Prometheus type, such as gauge."""
    labels: tuple[str, ...]
    """Its labels."""
    text: str
    """Its help text."""


def entry_of(metric: Any) -> MetricEntry:
    """Return the documentation entry of a metric."""
    suffix = "_total" if isinstance(metric, Counter) else ""
    kind = type(metric).__name__.lower()
    return MetricEntry(
        name=metric._name + suffix,
        kind=kind,
        labels=metric._labelnames,
        text=metric._documentation,
    )


class Family(Generic[M]):
    """A metric that exports each of its series only once that series has been used.

    A gauge that has no value yet is thus absent rather than 0, which would be mistaken for a value.
    """

    def __init__(self, metric: M, own: tuple[str, ...]) -> None:
        self.metric: M = metric
        self._own = own
        self._series: dict[tuple[str, ...], M] = {}

    def __call__(self, *labels: str) -> M:
        """Return the series with these values of the metric's own labels."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = self.metric.labels(*self._own, *labels)
        return series


class Metrics:
    """Every metric of one rank.

    Metrics of the job as a whole have no `rank` label and are exported by rank 0 alone.

    Args:
        job: The name of the job.
        run: The address of the job's output.
        rank: The number of this rank.
    """

    def __init__(self, job: str, run: str, rank: int) -> None:
        # Otherwise, every counter and histogram would export an extra `_created` series.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        # Never exported: ranks other than 0 set the metrics of the job here, so that callers need
        # not check the rank.
        self._hidden = CollectorRegistry()
        self._job = (job, run)
        self._rank = rank
        self._declare_progress()
        self._declare_learning()
        self._declare_speed()
        self._declare_data()
        self._declare_durability()
        # Set from the start, so that an alert on the age of the last step also covers a stall
        # before the first.
        for begun in (self.start, self.last_step):
            begun().set(time.time())
        self.export().set_function(time.time)

    def _declare_progress(self) -> None:
        self.step = self._job_gauge("step", "Optimizer steps done since the job began")
        self.steps = self._job_gauge("steps", "Optimizer steps in the whole job")
        self.epoch = self._job_gauge("epoch", "Epochs done since the job began")
        self.samples = self._counter(_JOB, "samples", "Images trained on in this attempt")
        self.start = self._job_gauge("start_timestamp_seconds", "When this attempt began")
        self.last_step = self._job_gauge(
            "last_step_timestamp_seconds",
            "End of the last step; before the first, start of the attempt; in evaluation, "
            "time of the last batch",
        )
        self.export = self._job_gauge(
            "export_timestamp_seconds",
            "Time of this export; falls behind if a process hangs whose metrics a gateway keeps",
        )
        self.phase_start = self._job_gauge(
            "phase_start_timestamp_seconds", "When this attempt began or last released layers"
        )
        self.expected_end = self._job_gauge(
            "expected_end_timestamp_seconds",
            "When the job's final step is expected to finish, at the current speed",
        )
        self.last_success = self._job_gauge(
            "last_success_timestamp_seconds", "When the job was completed"
        )
        self.attempt = self._job_gauge("attempt", "Number of this attempt, from 1")
        self.build = self._job_gauge(
            "build_info",
            "Versions of the worker and its main libraries; always 1",
            "version",
            "revision",
            "python",
            "torch",
            "torchvision",
        )
        self.environment = self._job_gauge(
            "environment_info",
            "Scheduler, device, backend and topology of the run; always 1",
            "scheduler",
            "device",
            "backend",
            "precision",
            "ranks",
            "nodes",
        )

    def _declare_learning(self) -> None:
        self.loss = self._job_gauge(
            "loss", "Mean loss over the most recent steps, or in the last evaluation", "split"
        )
        self.accuracy = self._job_gauge(
            "accuracy_ratio",
            "Top-1 accuracy over the most recent steps, or in the last evaluation",
            "split",
        )
        self.best_accuracy = self._job_gauge(
            "best_accuracy_ratio", "Validation accuracy of the best evaluation so far"
        )
        self.metric = self._job_gauge(
            "metric", "The figure that train.metric names, in the last evaluation", "metric"
        )
        self.metric_low = self._job_gauge(
            "metric_low", "Lower limit of the 95% interval of that figure", "metric"
        )
        self.metric_high = self._job_gauge(
            "metric_high", "Upper limit of the 95% interval of that figure", "metric"
        )
        self.best_metric = self._job_gauge(
            "best_metric", "The best value of that figure so far", "metric"
        )
        self.rate = self._job_gauge("learning_rate", "Learning rate of a group", "group")
        self.gradient_norm = self._job_gauge(
            "gradient_norm", "Norm of the gradient of a group, before clipping", "group"
        )
        self.skipped_steps = self._counter(
            _JOB, "skipped_steps", "Steps skipped by this attempt because the loss was not finite"
        )

    def _declare_speed(self) -> None:
        self.throughput = self._job_gauge("images_per_second", "Training throughput of all ranks")
        self.wait_ratio = self._job_gauge(
            "data_wait_ratio",
            "Share of time spent waiting for images, on the rank that waits longest",
        )
        self.step_seconds = self._histogram(
            _RANK, "step_seconds", "Duration of a training step", _STEP_BUCKETS
        )
        self.phase_seconds = self._histogram(
            _RANK,
            "step_phase_seconds",
            "Duration of each part of a step: wait, host_to_device, forward_backward, optimizer, "
            "other",
            _PHASE_BUCKETS,
            "phase",
        )
        self.gpu_memory = self._rank_gauge(
            "gpu_memory_peak_bytes", "Peak GPU memory allocated to tensors so far"
        )
        self.gpu_memory_total = self._rank_gauge("gpu_memory_bytes", "Total memory of the GPU")
        self.gpu_utilization = self._rank_gauge(
            "gpu_utilization_ratio", "Share of the last second in which the GPU was busy"
        )

        self.rank_seconds = self._job_gauge(
            "rank_seconds", "Time that the ranks of this attempt have been held, added up"
        )
        self.energy = self._job_gauge(
            "gpu_energy_joules", "Energy of all GPUs since this attempt began, where NVML counts it"
        )

    def _declare_data(self) -> None:
        self.bad_samples = self._counter(
            _JOB, "bad_samples", "Samples left out by this attempt", "reason"
        )
        self.budget_used = self._job_gauge(
            "error_budget_used_ratio",
            "Bad samples as a share of those allowed; above 1, the job ends",
        )
        requests = "Storage requests, counting every retry"
        self.store_requests = self._counter(_RANK, "store_requests", requests, "operation")
        self.store_bytes = self._counter(
            _RANK, "store_bytes", "Bytes read from storage and written to it", "operation"
        )
        self.store_retries = self._counter(
            _RANK, "store_retries", "Failed storage requests that were retried", "operation"
        )
        self.store_failures = self._counter(
            _RANK, "store_failures", "Storage requests that failed for good", "operation"
        )
        self.store_seconds = self._histogram(
            _RANK,
            "store_request_seconds",
            "Duration of one try of a storage request",
            _REQUEST_BUCKETS,
            "operation",
        )
        self.export_failures = self._counter(
            _RANK, "export_failures", "Metrics exports that failed", "way"
        )

    def _declare_durability(self) -> None:
        self.checkpoint_seconds = self._histogram(
            _JOB, "checkpoint_seconds", "Checkpoint duration, from copy to commit", _SAVE_BUCKETS
        )
        self.checkpoint_blocked_seconds = self._histogram(
            _JOB,
            "checkpoint_blocked_seconds",
            "Time for which a checkpoint blocked training",
            _PHASE_BUCKETS,
        )
        self.checkpoint_bytes = self._job_gauge("checkpoint_bytes", "Size of the last checkpoint")
        self.checkpoint_interval = self._job_gauge(
            "checkpoint_interval_seconds", "Time between checkpoints, as set or chosen"
        )
        self.checkpoint_overhead = self._job_gauge(
            "checkpoint_overhead_ratio",
            "Share of the time that checkpoints cost: blocked, and by slower steps",
        )
        self.checkpoint_failures = self._counter(
            _JOB, "checkpoint_failures", "Checkpoints that could not be written"
        )
        self.last_commit = self._job_gauge(
            "last_commit_timestamp_seconds",
            "When the last checkpoint was committed",
        )
        self.invalid_checkpoints = self._counter(
            _JOB, "invalid_checkpoints", "Checkpoints skipped because they failed verification"
        )
        self.resume_step = self._job_gauge("resume_step", "Step from which this attempt resumed")
        self.steps_lost = self._job_gauge(
            "steps_lost", "Steps repeated because no intact checkpoint included them"
        )

    def request(self, operation: str, seconds: float, size: int) -> None:
        """Count one try of a storage request.

        Args:
            operation: The S3 operation.
            seconds: How long it took.
            size: Bytes transferred.
        """
        self.store_requests(operation).inc()
        self.store_seconds(operation).observe(seconds)
        self.store_bytes(operation).inc(size)

    def retry(self, operation: str) -> None:
        """Count a failed try that is followed by another."""
        self.store_retries(operation).inc()

    def failure(self, operation: str) -> None:
        """Count a request that failed for good."""
        self.store_failures(operation).inc()

    def values(self, names: Collection[str]) -> dict[str, float]:
        """Return the values of the named gauges, which must have only the labels of the job."""
        return {
            metric.name.removeprefix("worker_"): metric.samples[0].value
            for metric in self.registry.collect()
            if metric.name.removeprefix("worker_") in names and metric.samples
        }

    def entries(self) -> Iterator[MetricEntry]:
        """Yield the documentation entries of all metrics, in display order."""
        # Attributes keep the order in which the `_declare_…` methods set them.
        for family in vars(self).values():
            if isinstance(family, Family):
                yield entry_of(family.metric)

    def _job_gauge(self, name: str, text: str, *labels: str) -> Family[Gauge]:
        return self._family(Gauge, _JOB, name, text, labels)

    def _rank_gauge(self, name: str, text: str) -> Family[Gauge]:
        return self._family(Gauge, _RANK, name, text, ())

    def _counter(self, own: tuple[str, ...], name: str, text: str, *labels: str) -> Family[Counter]:
        family = self._family(Counter, own, name, text, labels)
        if not labels:
            family()  # a counter starts at 0, so that its rate is defined
        return family

    def _histogram(
        self,
        own: tuple[str, ...],
        name: str,
        text: str,
        buckets: tuple[float, ...],
        *labels: str,
    ) -> Family[Histogram]:
        metric = Histogram(
            f"worker_{name}", text, (*own, *labels), buckets=buckets, registry=self._home(own)
        )
        return Family(metric, self._values(own))

    def _family(
        self, kind: type[M], own: tuple[str, ...], name: str, text: str, labels: tuple[str, ...]
    ) -> Family[M]:
        metric = kind(f"worker_{name}", text, (*own, *labels), registry=self._home(own))
        return Family(metric, self._values(own))

    def _home(self, own: tuple[str, ...]) -> CollectorRegistry:
        return self.registry if own == _RANK or self._rank == 0 else self._hidden

    def _values(self, own: tuple[str, ...]) -> tuple[str, ...]:
        return (*self._job, str(self._rank)) if own == _RANK else self._job
