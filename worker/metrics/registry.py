"""The metrics of a rank: one registry, prefix `worker_`, base units, bounded labels."""

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

_LABELS = ("job", "run", "rank")


class Metrics:
    """Every metric of one rank; `run` is the address of the job's output."""

    def __init__(self, job: str, run: str, rank: int) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._labels = {"job": job, "run": run, "rank": str(rank)}

        self.step = self._add(Gauge, "step", "Optimiser steps done since the job began")
        self.steps = self._add(Gauge, "steps", "Optimiser steps of the whole job")
        self.epoch = self._add(Gauge, "epoch", "Epochs done since the job began")
        self.samples = self._add(Counter, "samples", "Images trained on by this attempt, all ranks")
        self.loss = self._add(Gauge, "loss", "Mean training loss since the last log line")
        self.accuracy = self._add(Gauge, "accuracy_ratio", "Top-1 accuracy on the validation set")
        self.validation_loss = self._add(
            Gauge, "validation_loss", "Mean loss on the validation set"
        )
        self.rate = self._add(Gauge, "learning_rate", "Learning rate of a group", ("group",))
        self.throughput = self._add(Gauge, "images_per_second", "Training speed, all ranks")
        self.step_seconds = self._add(Histogram, "step_seconds", "Duration of a training step")
        self.wait_seconds = self._add(
            Counter, "data_wait_seconds", "Time that this rank waited for its batches"
        )
        self.bad_samples = self._add(
            Counter, "bad_samples", "Samples left out by this attempt", ("reason",)
        )
        self.skipped_steps = self._add(
            Counter, "skipped_steps", "Steps left out by this attempt for a loss not finite"
        )
        self.remaining = self._add(Gauge, "remaining_seconds", "Expected time to the end")
        self.checkpoint_seconds = self._add(
            Histogram, "checkpoint_seconds", "Duration of a checkpoint, from copy to commit"
        )
        self.checkpoint_blocked_seconds = self._add(
            Histogram, "checkpoint_blocked_seconds", "Time that training waited for a checkpoint"
        )
        self.checkpoint_bytes = self._add(Gauge, "checkpoint_bytes", "Size of the last checkpoint")
        self.resume_step = self._add(Gauge, "resume_step", "Step that this attempt went on from")
        self.steps_lost = self._add(
            Gauge, "steps_lost", "Steps done again by this attempt, as no whole checkpoint had them"
        )
        self.skipped_commits = self._add(
            Counter, "invalid_checkpoints", "Checkpoints passed over because they did not verify"
        )
        self.attempt = self._add(Gauge, "attempt", "Number of this attempt")
        self.last_step = self._add(
            Gauge, "last_step_timestamp_seconds", "When the last step was done"
        )
        self.last_commit = self._add(
            Gauge, "last_commit_timestamp_seconds", "When the last checkpoint was committed"
        )
        self.last_success = self._add(
            Gauge, "last_success_timestamp_seconds", "When the job was done"
        )

    def set_rate(self, group: str, rate: float) -> None:
        """Show the learning rate of one group."""
        self.rate.labels(**self._labels, group=group).set(rate)

    def note_bad_sample(self, reason: str) -> None:
        """Count a sample that was left out."""
        self.bad_samples.labels(**self._labels, reason=reason).inc()

    def _add(self, kind: Any, name: str, text: str, more: tuple[str, ...] = ()) -> Any:
        metric = kind(f"worker_{name}", text, (*_LABELS, *more), registry=self.registry)
        return metric if more else metric.labels(**self._labels)
