"""The steps of an epoch, and everything that happens during and between them."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from worker.data.epoch_plan import EpochPlan, Ids
from worker.data.loader import Bad, Batch
from worker.errors import Diverged
from worker.learn.training_step import Engine
from worker.metrics.gpu_usage import EnergyMeter
from worker.model.optimizer import set_rates
from worker.numbers import ceil_div
from worker.ranks.agreement import Agreement, Signals
from worker.ranks.process_group import highest, total
from worker.record.events import SkippedEvent
from worker.record.progress import StepProgress
from worker.record.telemetry import StepReport, Telemetry
from worker.train.attempt import Attempt
from worker.train.bad_samples import Quarantine
from worker.train.batches import BatchFeed
from worker.train.step_timing import Stopwatch

log = logging.getLogger(__name__)

_REPORTS_PER_EPOCH = 20
_STEPS_PER_REPORT = 50
_SECONDS_PER_REPORT = 0.5  # minimum on a GPU, which runs out of work at each report
_MAX_NOTED = 100  # skipped steps to note in the history
_MAX_SKIPPED = 20  # in a row; after that, the weights no longer yield a finite loss


@dataclass(frozen=True, kw_only=True)
class _Queued:
    """Facts to record about a step that the device may still be executing."""

    size: int
    """Number of images in the global batch."""
    ids: Ids
    """Ids of this rank's samples."""
    valid: npt.NDArray[np.bool_]
    """Mask of the samples that were trained on."""
    waited: float
    """Seconds spent waiting for its batch."""


class Steps:
    """Training on this rank's part of every batch; all ranks call the methods together.

    Args:
        attempt: The attempt, whose state the steps advance.
        engine: Runs the steps on the device.
        feed: Resolves requests into batches, and blends them.
        bad: The bad samples of the training set.
        telemetry: Receives the metrics and reports.
    """

    def __init__(
        self,
        attempt: Attempt,
        *,
        engine: Engine,
        feed: BatchFeed,
        bad: Quarantine,
        telemetry: Telemetry,
    ) -> None:
        job = attempt.job
        self._attempt = attempt
        self._telemetry = telemetry
        self._engine = engine
        self._feed = feed
        self._bad = bad
        self._agreement = Agreement(engine.device)
        self._due = False
        self._report_every = max(
            1, min(_STEPS_PER_REPORT, job.steps_per_epoch // _REPORTS_PER_EPOCH)
        )
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._norms: Mapping[str, float] = {}
        self._reported = -math.inf
        self._report_seconds = _SECONDS_PER_REPORT if engine.device.type == "cuda" else 0.0
        self._images = 0
        self._trained = 0  # images in this attempt
        self._energy = EnergyMeter()

    def run(self, plan: EpochPlan, batches: Iterator[Batch], *, probing: bool = False) -> None:
        """Train from the current state to the end of the epoch; `probing`: on cached features.

        The host looks at a step's outcome only once the next step is queued, so that the device
        never waits for the host; if something must be done between the two steps, it looks at
        the outcome immediately.
        Raises `StopRequested` after a stop request, with as much committed as the time allows.
        """
        attempt, state = self._attempt, self._attempt.state
        self._engine.probing = probing
        # New in every epoch, so that the evaluation in between does not count as a step.
        self._watch = Stopwatch()
        self._due = False  # the end of the last epoch has been saved
        begun = state.step % attempt.job.steps_per_epoch
        for at, step in enumerate(range(state.step, state.step + plan.steps - begun), begun):
            fresh, agreed = self._step(step, plan.size(at), batches)
            left = at + 1 < plan.steps
            reports = (agreed.report and (step + 1) % self._report_every == 0) or not left
            # `_is_due` comes first, so that it is always called: it remembers a checkpoint that
            # falls due while another is under way, and lets it follow. The end of the
            # epoch is saved by the caller, with its evaluation.
            saves = self._is_due(agreed, step + 1) and left and not agreed.saving
            releases = left and step + 1 == attempt.job.kept_release
            # A rank alone need not wait for the next exchange, which may be a long step away.
            stops = agreed.stop or (attempt.rank.world_size == 1 and attempt.stop.requested)
            if agreed.bad or reports or stops or saves or releases:
                self._finish()
            if agreed.bad:
                self.leave_out(fresh)
            if reports:
                self._report()
            if stops:
                attempt.end_on_request()
            if releases:
                attempt.save()
            elif saves:
                self._due = False
                attempt.begin_save()
            attempt.watchdog.beat()

    def leave_out(self, fresh: list[Bad]) -> None:
        """Record bad samples of the training set, and enforce the error budget."""
        self._bad.take(fresh, self._attempt)
        self._attempt.state.bad_samples = self._bad.ids
        self._bad.require_budget(self._attempt)

    def _step(self, step: int, size: int, batches: Iterator[Batch]) -> tuple[list[Bad], Signals]:
        """Queue step `step` on a global batch of `size`, and finish the step before it.

        Returns the bad samples newly found in this rank's part of the batch, and the flags that all
        ranks have agreed on.
        """
        attempt = self._attempt
        # 1. Get the batch, and propose this rank's flags, which travel during the next stage.
        # 2. Queue this step's forward and backward passes.
        # 3. Receive the flags of all ranks, and advance a save.
        # 4. Wait for the outcome of the previous step, and record it.
        # 5. Queue the update of this step.
        began = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - began
        self._watch.wait(waited)
        fresh = self._bad.fresh(batch.bad)
        self._agreement.propose(
            attempt.signals(
                bad=bool(fresh),
                due=self._has_waited(),
                report=time.monotonic() - self._reported >= self._report_seconds,
            )
        )
        # From the list, which is the same on all ranks, and not from this batch.
        self._engine.expects_holes = bool(self._bad.ids)
        # Features are not blended, and do not begin with a sample of another rank.
        blend = None if self._engine.probing else self._feed.blend(step)
        self._engine.launch(step, batch, size, blend)
        # Before anything else: on a CPU, this is what detects a lost rank.
        agreed = self._agreement.result()
        attempt.advance(agreed)
        # Before the update: the weights are still those after the previous step, which `_skip` may
        # commit, and with which the moving average is updated.
        self._finish()
        set_rates(attempt.learner.optimizer, attempt.job.factor(step))
        self._engine.update()
        # Without the extra sample at the head, which belongs to the preceding rank's part.
        trained = slice(0 if self._engine.probing else self._feed.led, None)
        self._queued = _Queued(
            size=size,
            ids=batch.ids[trained],
            # Copied, so that the record does not depend on when the loader reuses the batch's
            # memory.
            valid=batch.valid[trained].numpy().copy(),
            waited=waited,
        )
        return fresh, agreed

    def _finish(self) -> None:
        """Wait for the queued step, if there is one, and record its outcome."""
        outcome = self._engine.settle()
        if not outcome:
            return
        attempt, state, queued = self._attempt, self._attempt.state, self._queued
        # All zeros if the step is not finite, so that the means stay finite.
        self._sums += outcome.sums
        self._norms = outcome.norms
        if not outcome.finite:
            self._skip()
        state.skipped_in_a_row = 0 if outcome.finite else state.skipped_in_a_row + 1
        attempt.recorder.trained(state.step, queued.ids, queued.valid)
        state.step += 1
        self._images += queued.size
        epochs = state.step / attempt.job.steps_per_epoch
        phases = {"wait": queued.waited, **outcome.seconds}
        seconds = self._watch.lap()
        attempt.pace.step(seconds, saving=attempt.durable.saving)
        self._telemetry.step(
            state.step, epochs=epochs, size=queued.size, seconds=seconds, phases=phases
        )

    def _has_waited(self) -> bool:
        """Return whether a checkpoint is due by rank 0's clock; False on other ranks."""
        interval = self._attempt.pace.seconds
        waited = self._attempt.durable.seconds_since_save()
        return self._attempt.leads and interval is not None and waited >= interval

    def _is_due(self, agreed: Signals, step: int) -> bool:
        every = self._attempt.job.manifest.checkpoint.every_steps
        self._due |= agreed.due or bool(every and step % every == 0)
        return self._due

    def _skip(self) -> None:
        """Leave out a step with a non-finite loss.

        Commits and raises instead if the manifest does not allow it, or after too many in a row.
        """
        attempt, state = self._attempt, self._attempt.state
        wanted = attempt.job.manifest.train.non_finite == "skip"
        # Plus this step, which `_finish` counts only afterward.
        if not wanted or state.skipped_in_a_row + 1 >= _MAX_SKIPPED:
            self._engine.abandon()
            attempt.commit()
            again = f", and has not been for {_MAX_SKIPPED} steps in a row" if wanted else ""
            remedy = "" if wanted else ", or leave such steps out with train.non_finite: skip"
            raise Diverged(
                f"optimizer.lr: the loss is not finite in step {state.step + 1}{again}; "
                f"lower the rates{remedy}"
                if attempt.leads
                else ""
            )
        state.skipped += 1
        attempt.metrics.skipped_steps().inc()
        if state.skipped <= _MAX_NOTED:
            attempt.journal.note(SkippedEvent(step=state.step + 1))
        if attempt.leads:
            log.warning("the loss is not finite in step %d; the step is left out", state.step + 1)

    def _report(self) -> None:
        """Report to the record, the metrics and the user on the steps since the last report."""
        job, done = self._attempt.job, self._attempt.state.step
        self._reported = time.monotonic()
        device = self._engine.device
        energy = self._energy.joules()
        loss, right, counted, joules = total(*self._sums.tolist(), energy, device=device)
        self._sums.zero_()
        images, self._images = self._images, 0
        self._trained += images
        seconds, waited = self._watch.split()
        # The rank that waits most sets the pace of all.
        (wait_ratio,) = highest(waited / seconds, device=device)
        checkpoint = job.manifest.checkpoint
        steps = min(checkpoint.every_steps or job.steps_per_epoch, job.steps_per_epoch)
        pace = self._attempt.pace
        interval = min(steps * self._watch.mean, pace.seconds or math.inf)
        self._attempt.metrics.checkpoint_interval().set(interval)
        if pace.cost is not None:
            self._attempt.metrics.checkpoint_overhead().set(pace.cost / max(interval, pace.cost))
        step = StepProgress(
            step=done,
            total_steps=job.total_steps,
            epoch=ceil_div(done, job.steps_per_epoch),
            loss=loss / counted if counted else math.nan,
            accuracy=right / counted if counted else math.nan,
            images_per_second=images / seconds,
            wait_ratio=wait_ratio,
            checkpoint_seconds=interval,
            remaining_seconds=self._watch.mean * (job.total_steps - done),
            rates=job.rates(done - 1),
            gradient_norms=self._norms,
            images=self._trained,
            joules=None if math.isnan(joules) else joules,
        )
        self._telemetry.report(
            StepReport(step=step, images=images, counted=counted, seconds=seconds)
        )
