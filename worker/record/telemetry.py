"""Telemetry of a rank: step metrics, and reports for the history and the progress display."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from worker.metrics.gpu_usage import show_gpu
from worker.metrics.registry import Metrics
from worker.numbers import ceil_div
from worker.record.events import CommitEvent, StepEvent
from worker.record.journal import Journal
from worker.record.progress import Progress, StepProgress

_MAX_IN_HISTORY = 2000  # step events, more than enough for a chart


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The steps since the last report."""

    step: StepProgress
    """Means over the steps. If no image counted, as in skipped steps, loss and accuracy are NaN.
    """
    images: int
    """The number of images in the steps, used for the throughput."""
    counted: float
    """The number of images that count toward the means."""
    seconds: float
    """The duration of the steps, in seconds."""


def merge_reports(reports: Sequence[StepReport]) -> StepProgress:
    """Return consecutive reports merged into one."""
    sound = [report for report in reports if report.counted]
    # Dividing by NaN makes the means NaN if nothing counted.
    counted = sum(report.counted for report in sound) or math.nan
    seconds = sum(report.seconds for report in reports)
    return replace(
        reports[-1].step,
        loss=sum(report.step.loss * report.counted for report in sound) / counted,
        accuracy=sum(report.step.accuracy * report.counted for report in sound) / counted,
        images_per_second=sum(report.images for report in reports) / seconds,
        wait_ratio=sum(report.step.wait_ratio * report.seconds for report in reports) / seconds,
    )


class Telemetry:
    """The telemetry of one rank; the history is thinned out so that it stays small.

    Args:
        metrics: The metrics of the rank.
        journal: The journal of the attempt.
        progress: The progress display.
        total_steps: The total number of steps of the job.
        ranks: The number of ranks.
    """

    def __init__(
        self,
        metrics: Metrics,
        journal: Journal,
        progress: Progress,
        *,
        total_steps: int,
        ranks: int,
    ) -> None:
        self._ranks = ranks
        self._began = time.monotonic()
        self._metrics = metrics
        self._journal = journal
        self._progress = progress
        self._every = ceil_div(total_steps, _MAX_IN_HISTORY)
        self._noted = 0
        self._trained: set[str] = set()
        self._reports: list[StepReport] = []

    def step(
        self, step: int, *, epochs: float, size: int, seconds: float, phases: Mapping[str, float]
    ) -> None:
        """Update the metrics after a step.

        Args:
            step: The number of the step.
            epochs: Epochs completed after the step, including the fraction of the current one.
            size: The number of images in the step, over all ranks.
            seconds: The duration of the step.
            phases: Seconds by phase; the rest of `seconds` is counted as the phase `other`.
        """
        metrics = self._metrics
        metrics.step().set(step)
        metrics.epoch().set(epochs)
        metrics.samples().inc(size)
        metrics.last_step().set(time.time())
        metrics.step_seconds().observe(seconds)
        for phase, part in phases.items():
            metrics.phase_seconds(phase).observe(part)
        metrics.phase_seconds("other").observe(max(0.0, seconds - sum(phases.values())))

    def report(self, report: StepReport) -> None:
        """Publish a report to the metrics, the history and the progress display."""
        step, metrics = report.step, self._metrics
        for name, rate in step.rates.items():
            metrics.rate(name).set(rate)
        # The rate of a group is 0 until its release.
        trained = {name for name, rate in step.rates.items() if rate}
        if trained != self._trained:
            self._trained = trained
            metrics.phase_start().set(time.time())
        for name, norm in step.gradient_norms.items():
            if math.isfinite(norm):
                metrics.gradient_norm(name).set(norm)
        metrics.loss("train").set(step.loss)
        metrics.accuracy("train").set(step.accuracy)
        metrics.throughput().set(step.images_per_second)
        metrics.wait_ratio().set(step.wait_ratio)
        if step.joules is not None:
            metrics.energy().set(step.joules)
        metrics.rank_seconds().set((time.monotonic() - self._began) * self._ranks)
        metrics.expected_end().set(time.time() + step.remaining_seconds)
        show_gpu(metrics)
        self._reports.append(report)
        if step.step - self._noted >= self._every or step.step == step.total_steps:
            self._journal.note(_event_of(merge_reports(self._reports)))
            self._noted = step.step
            self._reports = []
        self._journal.show(step)
        self._progress.show(step)


def note_commit(metrics: Metrics, journal: Journal, event: CommitEvent) -> None:
    """Record a commit in the metrics and the history."""
    metrics.checkpoint_seconds().observe(event.seconds)
    metrics.checkpoint_bytes().set(event.bytes)
    metrics.last_commit().set(time.time())
    journal.note(event)


def _event_of(step: StepProgress) -> StepEvent:
    """Return the history event for a report."""
    return StepEvent(
        step=step.step,
        epoch=step.epoch,
        loss=step.loss,
        accuracy=step.accuracy,
        images_per_second=step.images_per_second,
        wait_ratio=step.wait_ratio,
        rates=step.rates,
        gradient_norms=step.gradient_norms,
        images=step.images,
        joules=step.joules,
    )
