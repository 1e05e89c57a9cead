"""The epochs of an attempt: train, evaluate, save, and stop early."""

import contextlib
import logging
import math
import time
from dataclasses import asdict
from typing import NoReturn

from worker.data.batch_requests import Request
from worker.data.epoch_plan import split
from worker.data.loader import Bad
from worker.errors import ConfigurationError, WorkerError, error_of
from worker.learn.evaluation import Evaluation
from worker.learn.training_step import Engine
from worker.ranks.agreement import Signals, agree
from worker.ranks.process_group import total
from worker.record.events import EvaluationEvent
from worker.record.progress import Progress
from worker.record.telemetry import Telemetry
from worker.train.attempt import Attempt
from worker.train.bad_samples import Quarantine
from worker.train.batches import TRAIN
from worker.train.epoch_steps import Steps
from worker.train.loaders import Loaders
from worker.train.validation import Validation

log = logging.getLogger(__name__)


class Trainer:
    """Training within an attempt, to its end; all ranks call every method together.

    Args:
        attempt: The attempt.
        loaders: The source of batches, not yet started.
        progress: The display of progress.
    """

    def __init__(self, attempt: Attempt, loaders: Loaders, progress: Progress) -> None:
        job, manifest = attempt.job, attempt.job.manifest
        self._attempt = attempt
        self._loaders = loaders
        engine = Engine(
            attempt.learner,
            job.preprocessing,
            job.criterion,
            train=manifest.train,
            clip_norm=manifest.optimizer.clip_norm,
            rank=attempt.rank,
            full_batch=job.full_batch,
        )
        loaders.start()
        self._validation = (
            Validation(job, job.val, rank=attempt.rank, loaders=loaders, beat=self._beat)
            if job.val
            else None
        )
        self._steps = Steps(
            attempt,
            engine=engine,
            feed=loaders.feed,
            bad=Quarantine("data.train", job.train, manifest.data.error_budget),
            telemetry=Telemetry(attempt.metrics, attempt.journal, progress, job.total_steps),
        )

    def train(self) -> None:
        """Train, or raise `StopRequested` with as much committed as the time allows."""
        attempt, state, job = self._attempt, self._attempt.state, self._attempt.job
        self._recheck_bad_samples()
        attempt.metrics.steps().set(job.total_steps)
        while True:
            # Also right after a resume: an attempt may stop after the last step of an epoch and
            # before its evaluation.
            if state.step % job.steps_per_epoch == 0 and state.step:
                self._end_epoch()
            if state.step >= job.total_steps or self._stops_early():
                return
            epoch, start = divmod(state.step, job.steps_per_epoch)
            request = Request(dataset=TRAIN, epoch=epoch, start=start)
            with contextlib.closing(self._loaders.batches(request)) as batches:
                self._steps.run(job.plan(epoch), batches)

    def _recheck_bad_samples(self) -> None:
        """Check whether samples that earlier attempts have left out are still bad."""
        rank, ids = self._attempt.rank, list(self._attempt.state.bad_samples)
        if not ids:
            return
        start, stop = split(len(ids), rank.rank, rank.world_size)
        bad: list[Bad] = []
        for batch in self._loaders.batches(Request(dataset=TRAIN, samples=ids[start:stop])):
            bad += batch.bad
        # This attempt's list starts empty, so samples since repaired are no longer left out.
        self._steps.leave_out(bad)

    def _end_epoch(self) -> None:
        """Evaluate and save the model after an epoch, unless an earlier attempt already has."""
        attempt, state = self._attempt, self._attempt.state
        if state.evaluated == state.step:
            return
        if self._validation:
            result = self._evaluate(self._validation)
            if result is None:
                self._end_without_evaluation(self._validation.error)
            early = attempt.job.manifest.train.early_stop
            state.note_evaluation(result.loss, result.accuracy, early.min_delta if early else 0.0)
            _record_evaluation(attempt, result)
            if result.loss is None:
                self._refuse_loss()
        state.evaluated = state.step
        attempt.save()

    def _end_without_evaluation(self, error: WorkerError | None) -> NoReturn:
        """Commit an epoch that could not be evaluated, and raise the error or `StopRequested`."""
        # Tells the two causes apart on all ranks: an error on one of them, or a stop.
        fault = agree(Signals(fault=int(error.code) if error else 0)).fault
        if not fault:
            self._attempt.end_on_request(" before the epoch was evaluated")
        self._attempt.commit()
        raise error if error and error.code == fault else error_of(fault)

    def _evaluate(self, validation: Validation) -> Evaluation | None:
        """Evaluate the current model; return None if a stop or an error came first."""
        attempt, state = self._attempt, self._attempt.state
        result = validation.run(attempt.learner, attempt.stop)
        if result is None:
            return None
        # `take` is a collective, so all ranks call it or none does.
        if total(len(validation.fresh))[0]:
            validation.bad.take(validation.fresh, attempt)
            validation.bad.require_budget(attempt)
        evaluation, rows, mistakes = result
        # Called before `note_evaluation`, so `best_step` is still that of an earlier evaluation.
        attempt.recorder.evaluated(state.step, rows, mistakes, state.best_step)
        return evaluation

    def _stops_early(self) -> bool:
        """Return whether accuracy has not improved for as long as the manifest allows."""
        attempt, stale = self._attempt, self._attempt.state.stale
        early = attempt.job.manifest.train.early_stop
        if not early or stale < early.patience:
            return False
        if attempt.leads:
            log.info("accuracy has not improved for %d epochs; training ends early", stale)
        return True

    def _refuse_loss(self) -> None:
        """End the job, or warn, if the validation loss is not finite."""
        attempt, text = self._attempt, "the validation loss is not finite"
        if attempt.job.manifest.train.non_finite == "fail":
            attempt.commit()
            raise ConfigurationError(
                f"optimizer.lr: {text}; lower the rates" if attempt.leads else ""
            )
        if attempt.leads:
            log.warning(text)

    def _beat(self) -> None:
        """Record that an evaluation is making progress."""
        self._attempt.watchdog.beat()
        self._attempt.metrics.last_step().set(time.time())


def _record_evaluation(attempt: Attempt, result: Evaluation) -> None:
    """Write an evaluation to the metrics, the history, the progress record and the log."""
    state, metrics, journal = attempt.state, attempt.metrics, attempt.journal
    epoch = state.step // attempt.job.steps_per_epoch
    loss = math.nan if result.loss is None else result.loss
    metrics.accuracy("validation").set(result.accuracy)
    metrics.loss("validation").set(loss)
    metrics.best_accuracy().set(state.best_accuracy or 0.0)
    # Without per-class rows: those of thousands of classes would fill most of the history.
    event = EvaluationEvent(
        epoch=epoch,
        step=state.step,
        loss=result.loss,
        accuracy=result.accuracy,
        top5_accuracy=result.top5_accuracy,
        best_accuracy=state.best_accuracy,
    )
    journal.note(event)
    if attempt.leads:
        log.info(
            "epoch %d/%d  validation accuracy %.2f%%  loss %.4f  best %.2f%%",
            epoch,
            attempt.job.manifest.train.epochs,
            100 * result.accuracy,
            loss,
            100 * (state.best_accuracy or 0.0),
            extra={"fields": {"event": "evaluation", "epoch": epoch, **asdict(result)}},
        )
