"""The life of one rank: claim, resume, train, evaluate, commit, finish."""

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from worker.checkpoint.attempt import claim_attempt, ensure_newest
from worker.checkpoint.commit import CommitName, list_commits, read_commit, write_commit
from worker.checkpoint.snapshot import read_state, restore_snapshot, take_snapshot
from worker.data.decode import for_evaluation, for_training
from worker.data.loader import Batch, Loader
from worker.data.plan import Ids, split
from worker.data.reader import SampleReader
from worker.errors import StopRequested
from worker.train.rank import Rank
from worker.metrics.registry import Metrics
from worker.model.optimizer import build_optimizer, freeze
from worker.model.weights import load_pretrained
from worker.train.distributed import Agreement, cores_per_rank, device_of, total
from worker.train.engine import Engine, Evaluation
from worker.train.job import Dataset, Job, manifest_digest
from worker.train.progress import Progress, Step, Stopwatch
from worker.train.record import Recorder
from worker.train.result import write_environment, write_result
from worker.train.stop import StopFlag

log = logging.getLogger(__name__)

_LINES_PER_EPOCH = 20
_STEPS_PER_LINE = 50
_EVALUATION_BATCH = 64


@dataclass
class State:
    """What a checkpoint holds besides tensors: steps done, and the last step that was evaluated."""

    step: int = 0
    evaluated: int = 0
    loss: float | None = None
    accuracy: float | None = None
    best_accuracy: float | None = None


class Session:
    """One rank of one attempt; every method is called by all ranks together."""

    def __init__(self, job: Job, rank: Rank, stop: StopFlag, progress: Progress) -> None:
        self._job = job
        self._rank = rank
        self._stop = stop
        self._progress = progress
        self._device = device_of(rank)
        self._threads = cores_per_rank(rank)
        torch.set_num_threads(self._threads)
        self._state = State()
        self._committed = 0
        self.metrics = Metrics(job.manifest.job, job.output.uri, rank.rank)

    def run(self) -> None:
        """Train to the end, or raise `StopRequested` with everything committed."""
        job = self._job
        model = job.backbone.model.to(self._device, memory_format=torch.channels_last)
        freeze(model, job.groups)
        optimizer = build_optimizer(model, job.groups, job.manifest.optimizer.name)
        self._attempt = self._claim()
        self._resume(optimizer)
        samples = job.manifest.record.samples
        self._recorder = Recorder(
            job.output, self._attempt, self._rank.rank, self._state.step, samples
        )
        self._recorder.event("start", attempt=self._attempt, world_size=self._rank.world_size)
        self._engine = Engine(
            model,
            optimizer,
            job.preprocessing,
            self._device,
            job.manifest.train.seed,
            self._rank.rank,
            self._rank.world_size,
        )
        self._loader = self._open_loader(job.train)
        try:
            self._train()
        finally:
            self._loader.close()
        self._finish()

    def _claim(self) -> int:
        number = 0
        if self._rank.rank == 0:
            number = claim_attempt(self._job.output)
            text = self._job.manifest.model_dump_json(indent=1)
            self._job.output.put("manifest.json", text.encode())
            write_environment(self._job.output, number, self._rank, self._device)
        attempt = int(total(number)[0])
        self.metrics.attempt.set(attempt)
        return attempt

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on from the newest commit that every rank has read and verified."""
        listed: list[Any] = [list_commits(self._job.output) if self._rank.rank == 0 else None]
        dist.broadcast_object_list(listed)
        for name in listed[0]:
            parts = read_commit(self._job.output, name)
            if total(parts is not None)[0] < self._rank.world_size or parts is None:
                self.metrics.skipped_commits.inc()
                continue
            kept = read_state(parts)
            self._job.require_identity(kept.pop("identity"), f"checkpoint {name}")
            restore_snapshot(parts, self._job.backbone.model, optimizer)
            self._state = State(**kept)
            self._committed = self._state.step
            break
        else:
            weights = self._job.manifest.model.weights
            if listed[0] and weights:  # else they have been loaded with the job
                load_pretrained(self._job.backbone, weights)
        self.metrics.resume_step.set(self._state.step)
        if self._rank.rank == 0:
            self._announce(len(listed[0]))

    def _announce(self, commits: int) -> None:
        at = f"resumes after step {self._state.step}" if self._state.step else "starts at step 0"
        if commits and not self._state.step:
            at += ", since none of the checkpoints is valid"
        ranks = f"{self._rank.world_size} rank{'s' if self._rank.world_size > 1 else ''}"
        log.info(
            "job %s, attempt %d %s of %d, on %s of %s",
            self._job.manifest.job,
            self._attempt,
            at,
            self._job.total_steps,
            ranks,
            self._device.type,
            extra={"fields": {"event": "start", "attempt": self._attempt, **asdict(self._state)}},
        )

    def _open_loader(self, dataset: Dataset) -> Loader:
        reader = SampleReader(dataset.store, dataset.index)
        return Loader(reader, self._threads, pin_memory=self._device.type == "cuda")

    def _train(self) -> None:
        for group in self._job.groups:
            self.metrics.set_rate(group.name, group.lr)
        self.metrics.steps.set(self._job.total_steps)
        while True:
            if self._state.step % self._job.steps_per_epoch == 0 and self._state.step:
                self._end_epoch()
            if self._state.step == self._job.total_steps:
                return
            self._train_epoch()

    def _train_epoch(self) -> None:
        """Train from where the state stands to the end of its epoch."""
        self._watch = Stopwatch()
        epoch, start = divmod(self._state.step, self._job.steps_per_epoch)
        plan = self._job.plan(epoch)
        job, rank = self._job, self._rank
        seed, augment = job.manifest.train.seed, job.manifest.data.augment
        batches = self._loader.batches(
            (plan.batch(step, rank.rank, rank.world_size) for step in range(start, plan.steps)),
            lambda sample, number: for_training(
                sample, job.preprocessing, augment, (seed, epoch, number)
            ),
            job.preprocessing.crop_size,
        )
        batch_size = job.manifest.train.batch_size
        try:
            self._train_steps(batches, plan.total, batch_size)
        finally:
            batches.close()

    def _train_steps(self, batches: Iterator[Batch], samples: int, batch_size: int) -> None:
        per_epoch = self._job.steps_per_epoch
        every = max(1, min(_STEPS_PER_LINE, per_epoch // _LINES_PER_EPOCH))
        agreement = Agreement()
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        counted, since = 0, time.monotonic()
        for index in range(self._state.step % per_epoch, per_epoch):
            agreement.propose(self._stop.requested)
            waited = time.monotonic()
            batch = next(batches)
            self.metrics.wait_seconds.inc(time.monotonic() - waited)
            count = min(batch_size, samples - index * batch_size)
            sums += self._engine.step(self._state.step, batch, count)
            self._note_step(batch.ids, count)
            counted += count
            if self._state.step % every == 0 or index == per_epoch - 1:
                elapsed, since = time.monotonic() - since, time.monotonic()
                self._report(sums, counted, elapsed)
                sums.zero_()
                counted = 0
            interval = self._job.manifest.checkpoint.every_steps
            if agreement.result():
                self._save()
                raise StopRequested(
                    f"stopped on request after step {self._state.step}, "
                    f"committed as attempt {self._attempt}; start again to go on"
                )
            if interval and self._state.step % interval == 0 and index < per_epoch - 1:
                self._save()

    def _note_step(self, ids: Ids, count: int) -> None:
        self._recorder.trained(self._state.step, ids)
        self._state.step += 1
        self.metrics.step.set(self._state.step)
        self.metrics.epoch.set(self._state.step / self._job.steps_per_epoch)
        self.metrics.samples.inc(count)
        self.metrics.last_step.set_to_current_time()
        self.metrics.step_seconds.observe(self._watch.lap())

    def _report(self, sums: torch.Tensor, counted: int, elapsed: float) -> None:
        loss, right = total(*sums.tolist())
        step = Step(
            step=self._state.step,
            total_steps=self._job.total_steps,
            epoch=-(-self._state.step // self._job.steps_per_epoch),
            loss=loss / counted,
            accuracy=right / counted,
            images_per_second=counted / elapsed,
            remaining_seconds=self._watch.remaining(self._job.total_steps - self._state.step),
            rates={group.name: group.lr for group in self._job.groups},
        )
        self.metrics.loss.set(step.loss)
        self.metrics.throughput.set(step.images_per_second)
        self.metrics.remaining.set(step.remaining_seconds)
        self._recorder.event("step", **asdict(step))
        if self._rank.rank == 0:
            self._progress.show(step)

    def _end_epoch(self) -> None:
        """Evaluate and commit what an epoch has done, unless an earlier attempt has."""
        state = self._state
        if state.evaluated < state.step:
            if self._job.val:
                result = self._evaluate(self._job.val)
                if result is None:
                    self._save()
                    raise StopRequested(
                        f"stopped on request after step {state.step}, before its evaluation; "
                        "start again to go on"
                    )
                state.loss, state.accuracy = result.loss, result.accuracy
                state.best_accuracy = max(state.best_accuracy or 0.0, result.accuracy)
                self._note_evaluation(result)
            state.evaluated = state.step
            self._save()

    def _evaluate(self, val: Dataset) -> Evaluation | None:
        loader = self._open_loader(val)
        start, stop = split(val.index.samples, self._rank.rank, self._rank.world_size)
        ids = torch.arange(start, stop).numpy()
        preprocessing = self._job.preprocessing
        batches = loader.batches(
            (ids[at : at + _EVALUATION_BATCH] for at in range(0, len(ids), _EVALUATION_BATCH)),
            lambda sample, _: for_evaluation(sample, preprocessing),
            preprocessing.crop_size,
        )
        try:
            return self._engine.evaluate(
                batches, len(val.index.classes), lambda: self._stop.requested
            )
        finally:
            batches.close()
            loader.close()

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
        """Commit the state; the record of what led to it goes first."""
        if self._committed == self._state.step and self._state.evaluated < self._state.step:
            return
        began = time.monotonic()
        self._recorder.flush(self._state.step)
        total(0)  # every rank's record is written
        if self._rank.rank == 0:
            output = self._job.output
            ensure_newest(output, self._attempt)
            state = {**asdict(self._state), "identity": self._job.identity}
            parts = take_snapshot(self._engine.model, self._engine.optimizer, state)
            size = write_commit(output, CommitName(self._state.step, self._attempt), parts)
            self.metrics.checkpoint_bytes.set(size)
            self.metrics.last_commit.set_to_current_time()
        total(0)  # nobody leaves before the commit
        self._committed = self._state.step
        self.metrics.checkpoint_seconds.observe(time.monotonic() - began)

    def _finish(self) -> None:
        self._recorder.event("done", step=self._state.step)
        self._recorder.flush(self._state.step)
        if self._rank.rank == 0:
            ensure_newest(self._job.output, self._attempt)
            write_result(
                self._job,
                self._attempt,
                {**asdict(self._state), "manifest": manifest_digest(self._job.manifest)},
            )
            self.metrics.last_success.set_to_current_time()
            log.info(
                "done: %d steps, validation accuracy %s; the model is at %sfinal/",
                self._state.step,
                "not measured" if self._state.accuracy is None else f"{self._state.accuracy:.4f}",
                self._job.output.uri,
                extra={"fields": {"event": "done", **asdict(self._state)}},
            )
        total(0)
