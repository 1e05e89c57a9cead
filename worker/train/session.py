"""The life of one rank: resume, train, evaluate, commit, finish."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import NoReturn

import torch

from worker.checkpoint.saver_process import Saver
from worker.data.batch_requests import Request
from worker.data.epoch_plan import split
from worker.data.loader import Bad
from worker.environment import collective_seconds, stall_seconds
from worker.errors import ConfigurationError, InfrastructureError, WorkerError, error_of
from worker.job.job import Job
from worker.learn.evaluation import Evaluation
from worker.learn.training_step import Engine
from worker.metrics.registry import Metrics
from worker.model.learner import Learner, build_learner
from worker.numbers import ceil_div
from worker.ranks.agreement import Signals, agree
from worker.ranks.cpu_cores import cores_per_rank
from worker.ranks.peer_liveness import Liveness
from worker.ranks.process_group import device_of, meaningful_errors, total
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.ranks.watchdog import Watchdog, end_after
from worker.record.journal import Journal, kept
from worker.record.progress import Progress
from worker.record.sample_ledger import Recorder
from worker.record.telemetry import Telemetry
from worker.train.attempt import Attempt
from worker.train.bad_samples import Quarantine
from worker.train.batches import TRAIN
from worker.train.durable_state import DurableState
from worker.train.epoch_steps import Steps
from worker.train.finish import finish
from worker.train.loaders import Loaders
from worker.train.resume import Resumed, begin_attempt
from worker.train.validation import Validation

log = logging.getLogger(__name__)


class Session:
    """A rank of an attempt; every method is called by all ranks together."""

    def __init__(
        self,
        job: Job,
        rank: Rank,
        stop: StopFlag,
        *,
        progress: Progress,
        supply: Loaders,
        saver: Saver | None,
        say_last: Callable[[int], None],
    ) -> None:
        self._job = job
        self._rank = rank
        self._stop = stop
        self._progress = progress
        self._supply = supply
        self._saver = saver
        self._say_last = say_last
        self._journal: Journal | None = None
        self._device = device_of(rank)
        torch.set_num_threads(cores_per_rank(rank))
        torch.get_num_threads()  # settles it for this thread, whatever others set for themselves
        self.metrics = Metrics(job.manifest.job, job.output.uri, rank.rank)

    def run(self) -> None:
        """Train to the end, or raise `StopRequested` with everything committed."""
        job, rank = self._job, self._rank
        with contextlib.ExitStack() as stack:
            watchdog = Watchdog(stall_seconds(), rank.rank, self._end_stalled)
            stack.callback(watchdog.close)
            liveness = Liveness(
                lambda gone: self._end_now(f"lost rank {gone}"), collective_seconds()
            )
            stack.callback(liveness.abandon)
            learner = build_learner(job.backbone.model, job.groups, job.manifest, self._device)
            resumed = begin_attempt(job, rank, learner, self.metrics, watchdog.beat)
            if resumed.done:
                if rank.leads:
                    log.info("job %s was done by another attempt meanwhile", job.manifest.job)
                return
            journal = stack.enter_context(
                kept(job.output, resumed.attempt, leads=rank.leads, stop=self._stop)
            )
            stack.enter_context(meaningful_errors())
            self._journal = journal
            journal.begin(resumed.state.step, job.total_steps, rank.world_size)
            self._attempt = self._begin(learner, resumed, journal, watchdog)
            stack.callback(self._attempt.durable.close)
            watchdog.beat()
            self._train_on_data()
            liveness.close()
            watchdog.close()
            finish(self._attempt)

    def _begin(
        self, learner: Learner, resumed: Resumed, journal: Journal, watchdog: Watchdog
    ) -> Attempt:
        job, rank, state = self._job, self._rank, resumed.state
        share = ceil_div(job.manifest.train.batch_size, rank.world_size)
        recorder = Recorder(
            job.output,
            resumed.attempt,
            rank,
            step=state.step,
            share=share,
            samples=job.manifest.record.samples,
        )
        durable = DurableState(
            job,
            rank,
            learner,
            saver=self._saver,
            resumed=resumed,
            metrics=self.metrics,
            journal=journal,
            stop=self._stop,
            beat=watchdog.beat,
        )
        return Attempt(
            job=job,
            rank=rank,
            stop=self._stop,
            metrics=self.metrics,
            learner=learner,
            durable=durable,
            recorder=recorder,
            journal=journal,
            watchdog=watchdog,
        )

    def _end_now(self, text: str) -> None:
        """End this process, whose main thread is stuck, with 69."""
        log.error("%s", text)
        end_after(lambda: self._end_stalled(InfrastructureError(text)))

    def _end_stalled(self, error: InfrastructureError) -> None:
        """Report before the watchdog ends this process."""
        if self._journal:
            self._journal.close(error, math.inf)
        self._say_last(error.code)

    def _beat(self) -> None:
        """Record that an evaluation is under way."""
        self._attempt.watchdog.beat()
        self.metrics.last_step().set(time.time())

    def _train_on_data(self) -> None:
        """Open the data, and train on it to the end."""
        job, rank, data = self._job, self._rank, self._job.manifest.data
        clip_norm = job.manifest.optimizer.clip_norm
        self._engine = Engine(
            self._attempt.learner,
            job.preprocessing,
            job.criterion,
            train=job.manifest.train,
            clip_norm=clip_norm,
            rank=rank,
            full_batch=job.full_batch,
        )
        self._supply.start()
        self._validation: Validation | None = None
        if job.val:
            self._validation = Validation(job, job.val, rank, self._supply, self._beat)
        bad = Quarantine("data.train", job.train, data.error_budget)
        telemetry = Telemetry(self.metrics, self._attempt.journal, self._progress, job.total_steps)
        self._steps = Steps(self._attempt, self._engine, self._supply.feed, bad, telemetry)
        self._look_again()
        self._train()

    def _look_again(self) -> None:
        """Check whether samples that earlier attempts have left out are still bad."""
        ids = list(self._attempt.state.bad_samples)
        if not ids:
            return
        start, stop = split(len(ids), self._rank.rank, self._rank.world_size)
        bad: list[Bad] = []
        for batch in self._supply.batches(Request(dataset=TRAIN, samples=ids[start:stop])):
            bad += batch.bad
        self._steps.leave_out(bad)

    def _train(self) -> None:
        state, job = self._attempt.state, self._job
        self.metrics.steps().set(job.total_steps)
        while True:
            if state.step % job.steps_per_epoch == 0 and state.step:
                self._end_epoch()
            if state.step >= job.total_steps or self._stops_early():
                return
            epoch, start = divmod(state.step, job.steps_per_epoch)
            plan = job.plan(epoch)
            request = Request(dataset=TRAIN, epoch=epoch, start=start)
            with contextlib.closing(self._supply.batches(request)) as batches:
                self._steps.run(plan, batches)

    def _end_epoch(self) -> None:
        """Evaluate and save what an epoch has done, unless an earlier attempt has."""
        state = self._attempt.state
        if state.evaluated == state.step:
            return
        if self._validation:
            result = self._evaluate(self._validation)
            if result is None:
                self._end_without_evaluation(self._validation.error)
            early = self._job.manifest.train.early_stop
            state.note_evaluation(result.loss, result.accuracy, early.min_delta if early else 0.0)
            self._note_evaluation(result)
            if result.loss is None:
                self._refuse_loss()
        state.evaluated = state.step
        self._attempt.save()

    def _end_without_evaluation(self, error: WorkerError | None) -> NoReturn:
        """Commit the epoch that could not be evaluated, and raise why."""
        fault = agree(Signals(fault=int(error.code) if error else 0)).fault
        if not fault:
            self._attempt.end_on_request(" before its evaluation")
        self._attempt.commit()
        raise error if error and error.code == fault else error_of(fault)

    def _evaluate(self, validation: Validation) -> Evaluation | None:
        """The accuracy of the model as it is, or None where a stop or an error came between."""
        result = validation.run(self._attempt.learner, self._stop)
        if result is None:
            return None
        if total(len(validation.fresh))[0]:
            self._attempt.list_bad(validation.bad, validation.fresh)
            self._attempt.require_budget(validation.bad)
        evaluation, rows, mistakes = result
        state = self._attempt.state
        self._attempt.recorder.evaluated(state.step, rows, mistakes, state.best_step)
        return evaluation

    def _stops_early(self) -> bool:
        """Return whether accuracy has not improved for as long as the manifest allows."""
        early, stale = self._job.manifest.train.early_stop, self._attempt.state.stale
        if not early or stale < early.patience:
            return False
        if self._rank.leads:
            log.info("no better accuracy for %d epochs; training ends early", stale)
        return True

    def _refuse_loss(self) -> None:
        """End the job, or warn, if the validation loss is not finite."""
        text = "the validation loss is not finite"
        if self._job.manifest.train.non_finite == "fail":
            self._attempt.commit()
            raise ConfigurationError(
                f"optimizer.lr: {text}; lower the rates" if self._attempt.leads else ""
            )
        if self._attempt.leads:
            log.warning(text)

    def _note_evaluation(self, result: Evaluation) -> None:
        state = self._attempt.state
        epoch = state.step // self._job.steps_per_epoch
        loss = math.nan if result.loss is None else result.loss
        self.metrics.accuracy("validation").set(result.accuracy)
        self.metrics.loss("validation").set(loss)
        self.metrics.best_accuracy().set(state.best_accuracy or 0.0)
        # No row of it is cut, but a list of thousands of classes would be most of the history.
        kept = {k: v for k, v in asdict(result).items() if k != "per_class"}
        self._attempt.journal.event("evaluation", epoch=epoch, step=state.step, **kept)
        self._attempt.journal.stand(
            validation_accuracy=result.accuracy, best_accuracy=state.best_accuracy
        )
        if self._rank.leads:
            log.info(
                "epoch %d/%d  validation accuracy %.2f%%  loss %.4f  best %.2f%%",
                epoch,
                self._job.manifest.train.epochs,
                100 * result.accuracy,
                loss,
                100 * (state.best_accuracy or 0.0),
                extra={"fields": {"event": "evaluation", "epoch": epoch, **asdict(result)}},
            )
