"""The life of one rank: resume, train, evaluate, commit, finish."""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch

from worker.data.loader import Bad, Batch, Loader
from worker.data.plan import split
from worker.errors import ConfigurationError, DataError, StopRequested
from worker.metrics.registry import Metrics
from worker.model.learner import build_learner
from worker.model.optimizer import set_rates
from worker.train.distributed import Agreement, cores_per_rank, device_of, total
from worker.train.engine import Engine
from worker.train.evaluation import Evaluation
from worker.train.feed import Feed, evaluation_batches
from worker.train.job import Job, manifest_digest
from worker.train.progress import Progress, Step, Stopwatch
from worker.train.quarantine import Quarantine
from worker.train.rank import Rank
from worker.train.record import Recorder
from worker.train.result import write_result
from worker.train.state import DurableState
from worker.train.stop import StopFlag
from worker.train.supply import Supply
from worker.train.validation import Validation

log = logging.getLogger(__name__)

_REPORTS_PER_EPOCH = 20
_STEPS_PER_REPORT = 50
_MOST_SKIPPED = 20  # in a row: by then the weights themselves give no finite loss


class Session:
    """One rank of one attempt; every method is called by all ranks together."""

    def __init__(self, job: Job, rank: Rank, stop: StopFlag, progress: Progress) -> None:
        self._job = job
        self._rank = rank
        self._stop = stop
        self._progress = progress
        self._device = device_of(rank)
        torch.set_num_threads(cores_per_rank(rank))
        torch.get_num_threads()  # settles it for this thread, whatever others set for themselves
        self.metrics = Metrics(job.manifest.job, job.output.uri, rank.rank)

    def run(self) -> None:
        """Train to the end, or raise `StopRequested` with everything committed."""
        job, rank = self._job, self._rank
        learner = build_learner(job.backbone.model, job.groups, job.manifest, self._device)
        self._durable = DurableState(job, rank, learner, self.metrics)
        self._state = self._durable.state
        self._recorder = Recorder(
            job.output,
            self._durable.attempt,
            rank.rank,
            self._state.step,
            job.manifest.record.samples,
        )
        self._recorder.event(
            "start",
            attempt=self._durable.attempt,
            step=self._state.step,
            world_size=rank.world_size,
        )
        self._engine = Engine(
            learner,
            job.preprocessing,
            job.criterion,
            job.manifest.train,
            job.manifest.optimizer.clip_norm,
            rank,
        )
        data = job.manifest.data
        self._bad = Quarantine("data.train", job.train, data.error_budget)
        self._validation: Validation | None = None
        with contextlib.ExitStack() as stack:
            supply = stack.enter_context(contextlib.closing(Supply(data, rank, self._device)))
            lanes = -(-job.lanes // rank.world_size)
            loader = stack.enter_context(contextlib.closing(supply.open(job.train, lanes)))
            self._feed = Feed(job, rank, loader)
            if job.val:
                val_loader = stack.enter_context(contextlib.closing(supply.open(job.val, 1)))
                self._validation = Validation(job, job.val, rank, val_loader)
            self._look_again(loader)
            self._train()
        self._finish()

    def _look_again(self, loader: Loader) -> None:
        """Whether the samples that earlier attempts have left out are still bad."""
        ids = np.array(self._state.bad_samples, dtype=np.int64)
        if not len(ids):
            return
        start, stop = split(len(ids), self._rank.rank, self._rank.world_size)
        bad: list[Bad] = []
        for batch in evaluation_batches(loader, ids[start:stop], self._job.preprocessing):
            bad += batch.bad
        self._leave_out(bad)

    def _train(self) -> None:
        self.metrics.steps.set(self._job.total_steps)
        while True:
            if self._state.step % self._job.steps_per_epoch == 0 and self._state.step:
                self._end_epoch()
            if self._state.step == self._job.total_steps or self._stops_early():
                return
            self._train_epoch()

    def _train_epoch(self) -> None:
        """Train from where the state stands to the end of its epoch."""
        epoch, start = divmod(self._state.step, self._job.steps_per_epoch)
        plan = self._job.plan(epoch)
        batches = self._feed.batches(plan, epoch, start)
        with contextlib.closing(batches):
            self._train_steps(batches, [plan.size(step) for step in range(start, plan.steps)])

    def _train_steps(self, batches: Iterator[Batch], sizes: list[int]) -> None:
        """Take one step per batch; `sizes` are those of the global batches."""
        every = max(1, min(_STEPS_PER_REPORT, self._job.steps_per_epoch // _REPORTS_PER_EPOCH))
        interval = self._job.manifest.checkpoint.every_steps
        agreement = Agreement()
        watch = Stopwatch()
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        for left, size in zip(reversed(range(len(sizes))), sizes, strict=True):
            waited = time.monotonic()
            batch = next(batches)
            self.metrics.wait_seconds.inc(time.monotonic() - waited)
            step, fresh = self._state.step, self._bad.fresh(batch.bad)
            agreement.propose(self._stop.requested, bool(fresh))
            set_rates(self._engine.learner.optimizer, self._job.factor(step))
            outcome = self._engine.step(step, batch, size, self._feed.blend(step))
            sums += outcome.sums
            # First of all, as gloo notices a lost rank where NCCL would wait for it.
            stopping, met_bad = agreement.result()
            if not outcome.finite:
                self._skip()
            self._note_step(batch, size, watch.lap(), outcome.finite)
            if met_bad:
                self._leave_out(fresh)
            if self._state.step % every == 0 or not left:
                self._report(sums, watch)
                sums.zero_()
            if stopping:
                self._save()
                raise StopRequested(
                    f"stopped on request after step {self._state.step}, "
                    f"committed by attempt {self._durable.attempt}; start again to go on"
                )
            if interval and self._state.step % interval == 0 and left:
                self._save()
                watch.skip()

    def _leave_out(self, fresh: list[Bad]) -> None:
        """List bad samples; past the budget, commit and raise `DataError`."""
        self._exchange(self._bad, fresh)
        self._state.bad_samples = self._bad.ids
        self._require_budget(self._bad)

    def _require_budget(self, quarantine: Quarantine) -> None:
        excess = quarantine.excess()
        if excess:
            self._save()
            raise DataError(excess if self._rank.rank == 0 else "")

    def _exchange(self, quarantine: Quarantine, fresh: list[Bad]) -> None:
        quarantine.exchange(fresh, self.metrics, warn=self._rank.rank == 0)
        if self._rank.rank == 0:
            quarantine.write(self._job.output, self._durable.attempt)

    def _skip(self) -> None:
        """Leave out a step whose loss is not finite, or commit and raise where that is wanted."""
        state, wanted = self._state, self._job.manifest.train.non_finite == "skip"
        if not wanted or state.skipped_in_a_row + 1 >= _MOST_SKIPPED:
            self._save()
            again = f", {_MOST_SKIPPED} steps in a row" if wanted else ""
            remedy = "" if wanted else ", or leave such steps out with train.non_finite: skip"
            raise ConfigurationError(
                f"optimizer.lr: the loss is not finite in step {state.step + 1}{again}; "
                f"lower the rates{remedy}"
                if self._rank.rank == 0
                else ""
            )
        state.skipped += 1
        self.metrics.skipped_steps.inc()
        self._recorder.event("skipped", step=state.step + 1)
        if self._rank.rank == 0:
            log.warning("the loss is not finite in step %d; the step is left out", state.step + 1)

    def _note_step(self, batch: Batch, size: int, seconds: float, finite: bool) -> None:
        self._state.skipped_in_a_row = 0 if finite else self._state.skipped_in_a_row + 1
        own = slice(self._feed.led, None)
        self._recorder.trained(self._state.step, batch.ids[own], batch.valid[own].numpy())
        self._state.step += 1
        self.metrics.step.set(self._state.step)
        self.metrics.epoch.set(self._state.step / self._job.steps_per_epoch)
        self.metrics.samples.inc(size)
        self.metrics.last_step.set_to_current_time()
        self.metrics.step_seconds.observe(seconds)

    def _report(self, sums: torch.Tensor, watch: Stopwatch) -> None:
        """Tell the record, the metrics and the user what the steps since the last report gave."""
        loss, right, counted = total(*sums.tolist())
        counted = max(counted, 1)
        step = Step(
            step=self._state.step,
            total_steps=self._job.total_steps,
            epoch=-(-self._state.step // self._job.steps_per_epoch),
            loss=loss / counted,
            accuracy=right / counted,
            images_per_second=counted / watch.split(),
            remaining_seconds=watch.remaining(self._job.total_steps - self._state.step),
            rates=self._job.rates(self._state.step - 1),
        )
        for name, rate in step.rates.items():
            self.metrics.set_rate(name, rate)
        self.metrics.loss.set(step.loss)
        self.metrics.throughput.set(step.images_per_second)
        self.metrics.remaining.set(step.remaining_seconds)
        self._recorder.event("step", **asdict(step))
        if self._rank.rank == 0:
            self._progress.show(step)

    def _end_epoch(self) -> None:
        """Evaluate and commit what an epoch has done, unless an earlier attempt has."""
        state = self._state
        if state.evaluated == state.step:
            return
        if self._validation:
            result = self._evaluate(self._validation)
            if result is None:
                self._save()
                raise StopRequested(
                    f"stopped on request after step {state.step}, committed by attempt "
                    f"{self._durable.attempt} before its evaluation; start again to go on"
                )
            early = self._job.manifest.train.early_stop
            state.note_evaluation(result.loss, result.accuracy, early.min_delta if early else 0.0)
            self._note_evaluation(result)
        state.evaluated = state.step
        self._save()

    def _evaluate(self, validation: Validation) -> Evaluation | None:
        """The accuracy of the model as it is, or None where a stop was requested meanwhile."""
        result = validation.run(self._engine.learner, self._stop)
        if result is None:
            return None
        if total(len(validation.fresh))[0]:
            self._exchange(validation.bad, validation.fresh)
            self._require_budget(validation.bad)
        evaluation, confusion = result
        self._recorder.confusion(self._state.step, confusion)
        return evaluation

    def _stops_early(self) -> bool:
        """Whether the accuracy has not become better for as long as the manifest allows."""
        early = self._job.manifest.train.early_stop
        if not early or self._state.stale < early.patience:
            return False
        if self._rank.rank == 0:
            log.info("no better accuracy for %d epochs; training ends early", self._state.stale)
        return True

    def _note_evaluation(self, result: Evaluation) -> None:
        epoch = self._state.step // self._job.steps_per_epoch
        self.metrics.accuracy.set(result.accuracy)
        self.metrics.validation_loss.set(result.loss)
        self._recorder.event("evaluation", epoch=epoch, step=self._state.step, **asdict(result))
        if self._rank.rank == 0:
            log.info(
                "epoch %d/%d  validation accuracy %.4f  loss %.4f  best %.4f",
                epoch,
                self._job.manifest.train.epochs,
                result.accuracy,
                result.loss,
                self._state.best_accuracy,
                extra={"fields": {"event": "evaluation", "epoch": epoch, **asdict(result)}},
            )

    def _save(self) -> None:
        """Commit; the record of what led here goes first."""
        self._recorder.flush(self._state.step)
        self._durable.save()

    def _finish(self) -> None:
        state = self._state
        self._recorder.event("done", step=state.step)
        self._recorder.flush(state.step)
        if self._rank.rank == 0:
            self._durable.ensure_newest()
            result = {**state.as_dict(), "manifest": manifest_digest(self._job.manifest)}
            write_result(self._job, self._engine.learner.result, self._durable.attempt, result)
            self.metrics.last_success.set_to_current_time()
            accuracy = "not measured" if state.accuracy is None else f"{state.accuracy:.4f}"
            log.info(
                "done: %d steps, validation accuracy %s; the model is at %sfinal/",
                state.step,
                accuracy,
                self._job.output.uri,
                extra={"fields": {"event": "done", **state.as_dict()}},
            )
        total(0)
