"""A job's durable state as one attempt sees it: claimed, resumed, saved by all ranks together."""

import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from worker.checkpoint.attempt import claim_attempt, ensure_newest
from worker.checkpoint.commit import (
    CommitName,
    delete_commit,
    list_commits,
    read_commit,
    write_commit,
)
from worker.checkpoint.retention import expendable
from worker.checkpoint.snapshot import read_state, restore_snapshot, take_snapshot
from worker.metrics.registry import Metrics
from worker.model.learner import Learner
from worker.model.weights import load_pretrained
from worker.train.distributed import total
from worker.train.job import Job
from worker.train.rank import Rank
from worker.train.result import write_environment

log = logging.getLogger(__name__)


@dataclass
class State:
    """What a checkpoint holds besides tensors: steps done, and the last step that was evaluated."""

    step: int = 0
    evaluated: int = 0
    loss: float | None = None
    accuracy: float | None = None
    best_accuracy: float | None = None
    stale: int = 0
    """Evaluations since the last one that early stopping saw as better, and its accuracy."""
    to_beat: float | None = None
    skipped: int = 0
    """Steps left out because their loss was not finite; and how many of them in a row."""
    skipped_in_a_row: int = 0
    bad_samples: tuple[int, ...] = ()
    """Ids of training samples that were left out."""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON data."""
        return dataclasses.asdict(self)

    def note_evaluation(self, loss: float, accuracy: float, min_delta: float) -> None:
        """Take in the result of an evaluation; better means by more than `min_delta`."""
        self.loss, self.accuracy = loss, accuracy
        self.best_accuracy = max(self.best_accuracy or 0.0, accuracy)
        if self.to_beat is None or accuracy > self.to_beat + min_delta:
            self.to_beat, self.stale = accuracy, 0
        else:
            self.stale += 1


class DurableState:
    """The state of a job with its checkpoints in the store; its methods are called by all ranks.

    Making one claims an attempt; `state` is then where the newest valid commit left off.
    """

    def __init__(self, job: Job, rank: Rank, learner: Learner, metrics: Metrics) -> None:
        self._job = job
        self._rank = rank
        self._learner = learner
        self._metrics = metrics
        self._trusted: list[CommitName] = []
        self.state = State()
        self._saved = State()
        self.attempt = self._claim()
        self._resume()

    def save(self) -> None:
        """Commit the state, unless it is committed; no rank returns before it is.

        Raises `Superseded` where a newer attempt has started.
        """
        if self.state == self._saved:
            return
        began = time.monotonic()
        total(0)  # the records of every rank are written
        if self._rank.rank == 0:
            self._commit()
        total(0)  # nobody leaves before the commit
        self._saved = dataclasses.replace(self.state)
        self._metrics.checkpoint_seconds.observe(time.monotonic() - began)

    def ensure_newest(self) -> None:
        """Raise `Superseded` where a newer attempt has started."""
        ensure_newest(self._job.output, self.attempt)

    def _claim(self) -> int:
        number = 0
        if self._rank.rank == 0:
            number = claim_attempt(self._job.output, self._job.identity)
            changes = self._job.changes()
            if changes:
                log.warning("changed since the last attempt: %s", "; ".join(changes))
            text = self._job.manifest.model_dump_json(indent=1)
            self._job.output.put("manifest.json", text.encode())
            write_environment(self._job.output, number, self._rank)
        attempt = int(total(number)[0])
        self._metrics.attempt.set(attempt)
        return attempt

    def _resume(self) -> None:
        """Go on from the newest commit that every rank has read and verified."""
        listed: list[Any] = [list_commits(self._job.output) if self._rank.rank == 0 else None]
        dist.broadcast_object_list(listed)
        for name in listed[0]:
            parts = read_commit(self._job.output, name)
            if total(parts is not None)[0] == self._rank.world_size and parts is not None:
                self._restore(name, parts)
                break
            self._metrics.skipped_commits.inc()
        else:
            weights = self._job.manifest.model.pretrained
            if self._job.commits and weights:  # else they have been loaded with the job
                load_pretrained(self._job.backbone, weights)
        self._metrics.resume_step.set(self.state.step)
        if self._rank.rank == 0:
            self._announce(len(listed[0]))

    def _restore(self, name: CommitName, parts: dict[str, bytes]) -> None:
        kept = read_state(parts)
        restore_snapshot(parts, self._learner)
        self.state = State(**{**kept, "bad_samples": tuple(kept["bad_samples"])})
        self._saved = dataclasses.replace(self.state)
        self._trusted.append(name)

    def _announce(self, commits: int) -> None:
        step = self.state.step
        at = f"resumes after step {step}" if step else "starts at step 0"
        if commits and not step:
            at += ", since none of the checkpoints is valid"
        log.info(
            "job %s, attempt %d %s of %d; ranks: %d",
            self._job.manifest.job,
            self.attempt,
            at,
            self._job.total_steps,
            self._rank.world_size,
            extra={"fields": {"event": "start", "attempt": self.attempt, "step": step}},
        )

    def _commit(self) -> None:
        output = self._job.output
        self.ensure_newest()
        parts = take_snapshot(self._learner, self.state.as_dict())
        name = CommitName(self.state.step, self.attempt)
        self._metrics.checkpoint_bytes.set(write_commit(output, name, parts))
        self._metrics.last_commit.set_to_current_time()
        self._trusted.append(name)
        keep = self._job.manifest.checkpoint.keep
        for old in expendable(list_commits(output), self._trusted, keep):
            delete_commit(output, old)
