"""The epochs of an attempt: train, evaluate, save, and stop early."""

import contextlib
import logging
from dataclasses import replace
from typing import NoReturn

from worker.data.batch_requests import Request
from worker.data.epoch_plan import split
from worker.data.loader import Bad
from worker.errors import StopRequested
from worker.job.dataset import Dataset
from worker.learn.training_step import Engine
from worker.logs import count
from worker.record.progress import Progress
from worker.record.telemetry import Telemetry
from worker.train.attempt import Attempt
from worker.train.bad_samples import Quarantine
from worker.train.batches import TRAIN, VAL
from worker.train.epoch_steps import Steps
from worker.train.evaluator import Evaluator
from worker.train.head_features import HeadFeatures, compute_features
from worker.train.loaders import JobLoaders
from worker.train.validation import Validated, validate

log = logging.getLogger(__name__)


class Trainer:
    """Training within an attempt, to its end; all ranks call every method together.

    Args:
        attempt: The attempt.
        loaders: The source of batches, not yet started.
        progress: The display of progress.
        until: The number of epochs after which to stop; None to train to the end.
    """

    def __init__(
        self, attempt: Attempt, loaders: JobLoaders, progress: Progress, until: int | None
    ) -> None:
        self._until = until
        self._features: HeadFeatures | None = None
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
            head=job.backbone.head,
        )
        loaders.start()
        self.validated: Validated | None = None
        """The last validation of this attempt."""
        self.validation = Evaluator(attempt, VAL, job.val, loaders) if job.val else None
        """Evaluates on the validation set, if there is one."""
        self._steps = Steps(
            attempt,
            engine=engine,
            feed=loaders.feed,
            bad=Quarantine("data.train", self._trained(), manifest.data.error_budget),
            telemetry=Telemetry(
                attempt.metrics,
                attempt.journal,
                progress,
                total_steps=job.total_steps,
                ranks=attempt.rank.world_size,
            ),
        )

    def _trained(self) -> Dataset:
        """Return the training set, limited to the samples that the job trains on."""
        job = self._attempt.job
        return replace(job.train, ids=job.training_ids) if job.multiplicities else job.train

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
            if self._until and state.step >= self._until * job.steps_per_epoch:
                self._pause(self._until)
            epoch, start = divmod(state.step, job.steps_per_epoch)
            if epoch < job.probing_epochs:
                self._probe(epoch, start)
                continue
            request = Request(dataset=TRAIN, epoch=epoch, start=start)
            with contextlib.closing(self._loaders.batches(request)) as batches:
                self._steps.run(job.plan(epoch), batches)

    def _probe(self, epoch: int, start: int) -> None:
        """Train the head on features for an epoch; compute them unless this attempt has."""
        attempt, job = self._attempt, self._attempt.job
        if self._features is None:
            if attempt.leads:
                log.info("computing the features of %s", count(len(job.training_ids), "image"))
            self._features = compute_features(
                job,
                attempt.learner.model,
                job.training_ids,
                rank=attempt.rank,
                loaders=self._loaders,
                precision=attempt.learner.precision,
                advance=lambda _: attempt.watchdog.beat(),
            )
        plan = job.plan(epoch)
        batches = self._features.batches(plan, start, attempt.rank)
        self._steps.run(plan, batches, probing=True)

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
        if self.validation:
            self.validated = validate(attempt, self.validation)
        state.evaluated = state.step
        attempt.save()

    def _pause(self, until: int) -> NoReturn:
        """Wait for the save of the epoch that has just ended, and raise `StopRequested`."""
        self._attempt.drain()
        raise StopRequested(
            f"paused after {count(until, 'epoch')}; running it again continues from there"
            if self._attempt.leads
            else ""
        )

    def _stops_early(self) -> bool:
        """Return whether `train.metric` has not improved for as long as the manifest allows."""
        attempt, stale = self._attempt, self._attempt.state.stale
        early = attempt.job.manifest.train.early_stop
        if not early or stale < early.patience:
            return False
        if attempt.leads:
            metric = attempt.job.manifest.train.metric
            since = count(stale, "epoch")
            log.info("%s has not improved for %s; training ends early", metric, since)
        return True
