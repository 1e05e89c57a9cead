"""The start of an attempt: claim a number and resume from the newest intact checkpoint."""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.checkpoint.claim import claim_attempt
from worker.checkpoint.commit import (
    STATE_PART,
    CommitName,
    Parts,
    list_commits,
    read_commit,
    read_commit_record,
)
from worker.checkpoint.publication_record import read_done
from worker.checkpoint.publish import settle
from worker.checkpoint.snapshot import restore_snapshot
from worker.checkpoint.training_state import State
from worker.errors import ConfigurationError
from worker.job.job import Job, require_no_result, require_own_output
from worker.job.outline import outline_job
from worker.layout import environment_name, plan_name
from worker.logs import bind
from worker.metrics.registry import Metrics
from worker.model.learner import Learner
from worker.model.pretrained_weights import digest_of_weights, load_pretrained
from worker.ranks.leader import by_leader
from worker.ranks.process_group import total
from worker.ranks.rank import Rank
from worker.record.environment_record import environment_facts, show_environment
from worker.store.json_records import complaint, put_json
from worker.train.broadcast_state import share_learner, shared

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """The state of an attempt at its start."""

    attempt: int
    """The number of the attempt."""
    state: State
    """The progress that it starts with."""
    commit: CommitName | None
    """The checkpoint that it resumes from; None if there is none."""
    done: bool
    """Whether another attempt has finished the job meanwhile."""


def begin_attempt(
    job: Job, rank: Rank, *, learner: Learner, metrics: Metrics, beat: Callable[[], None]
) -> Resumed:
    """Claim an attempt and restore the newest intact checkpoint.

    Rank 0 reads and verifies it, then broadcasts it to the others. Called by all ranks together.

    Args:
        job: The job.
        rank: This rank.
        learner: The learner to restore the checkpoint into.
        metrics: The rank's metrics, which are updated.
        beat: Called while a rank waits.

    Returns:
        The attempt, and the state that it resumes from.
    """
    facts = environment_facts(rank, learner.precision)
    show_environment(facts, metrics)
    attempt = _claim(job, rank, facts)
    bind(attempt=attempt)
    metrics.attempt().set(attempt)
    found = _ResumePoint(state=State(), commit=None, lost=0, done=False)
    with by_leader("restored", beat) as leads:
        if leads:
            found = _restore(job, learner, metrics, beat)
    found = shared(found)
    if found.done:
        return Resumed(attempt=attempt, state=State(), commit=None, done=True)
    # Otherwise, all ranks have drawn the same weights from the seed.
    if found.commit or job.manifest.model.pretrained:
        share_learner(learner)
    metrics.step().set(found.state.step)
    metrics.resume_step().set(found.state.step)
    metrics.steps_lost().set(found.lost)
    if rank.leads:
        _announce(job, rank, attempt=attempt, step=found.state.step, lost=found.lost)
    return Resumed(attempt=attempt, state=found.state, commit=found.commit, done=False)


@dataclass(frozen=True, kw_only=True)
class _ResumePoint:
    """The job's state as rank 0 has found it in the output, and the number of lost steps."""

    state: State
    commit: CommitName | None
    lost: int
    done: bool


def _restore(
    job: Job, learner: Learner, metrics: Metrics, beat: Callable[[], None]
) -> _ResumePoint:
    # After the claim: from here on, no older attempt can commit.
    if settle(job.output, job.manifest.train.epochs, beat):
        return _ResumePoint(state=State(), commit=None, lost=0, done=True)
    # Before the restoration, the model has the weights that training starts from.
    start = digest_of_weights(job.backbone) if learner.pull else None
    newest = 0
    for name in list_commits(job.output):
        if name.step > job.total_steps or not read_commit_record(job.output, name):
            continue  # merely an object that is named like a commit
        newest = max(newest, name.step)
        parts = read_commit(job.output, name, beat)
        try:
            if parts:
                state = _state_in(parts, name, job)
                _require_same_start(state, start, job)
                restore_snapshot(parts, learner)
                return _ResumePoint(state=state, commit=name, lost=newest - state.step, done=False)
        except ValueError as error:
            log.warning(
                "checkpoint %s cannot be read (%s); trying an older one", name, complaint(error)
            )
        parts = None  # freed before those of the next checkpoint are in memory
        # The learner is unchanged: `restore_snapshot` raises before it changes anything.
        metrics.invalid_checkpoints().inc()
    require_no_result(job, read_done(job.output))
    if job.commits and job.manifest.model.pretrained:
        # If there are no commits at all, the pretrained weights were loaded along with the job.
        load_pretrained(job.backbone, job.manifest.model.pretrained)
        beat()
        if learner.average:
            learner.average.module.load_state_dict(learner.model.state_dict())
    return _ResumePoint(state=State(start=start), commit=None, lost=newest, done=False)


def _require_same_start(state: State, start: str | None, job: Job) -> None:
    """Set the start of `state`; raise `ConfigurationError` if the file of weights has changed."""
    if start and state.start and start != state.start:
        raise ConfigurationError(
            f"model.weights: {job.manifest.model.weights} has changed since this job began, and a "
            "group is pulled `towards: start`; restore the file, or use another output"
        )
    state.start = start or state.start


def _state_in(parts: Parts, name: CommitName, job: Job) -> State:
    """Return the state in a checkpoint; raises `ValueError` if it does not fit this job."""
    state = State.parse(bytes(parts[STATE_PART]))
    if state.step != name.step or max(state.evaluated, state.best_step or 0) > name.step:
        raise ValueError(f"{STATE_PART}: its steps do not match those of the checkpoint")
    if max(state.bad_samples, default=0) >= job.train.index.samples:
        raise ValueError(f"{STATE_PART}: bad_samples do not belong to this data set")
    return state


def _claim(job: Job, rank: Rank, facts: Mapping[str, Any]) -> int:
    number = 0
    if rank.leads:
        number = claim_attempt(
            job.output,
            job.identity,
            job.manifest.model_dump(mode="json"),
            functools.partial(require_own_output, job),
        )
        noted = [str(change) for change in job.changes if change.kind == "noted"]
        if noted:
            log.info("changed since the last attempt: %s", "; ".join(noted))
        ineffective = [str(change) for change in job.changes if change.kind == "ineffective"]
        if ineffective:
            log.warning(
                "changed without effect, as training resumes from a checkpoint: %s",
                "; ".join(ineffective),
            )
        plan = outline_job(job, rank.world_size).as_dict()
        for name, kept in ((environment_name(number), facts), (plan_name(number), plan)):
            put_json(job.output, name, kept)
    # A broadcast of a number from rank 0: all other ranks add 0.
    return int(total(number)[0])


def _announce(job: Job, rank: Rank, *, attempt: int, step: int, lost: int) -> None:
    if lost:
        where = f"after step {step}" if step else "from the start"
        log.warning(
            "the newest intact checkpoint lets the job resume %s; %d steps are repeated",
            where,
            lost,
        )
    log.info(
        "job %s: attempt %d %s of %d; ranks: %d",
        job.manifest.job,
        attempt,
        f"resumes after step {step}" if step else "starts at step 0",
        job.total_steps,
        rank.world_size,
        extra={"fields": {"event": "start", "attempt": attempt, "step": step, "steps_lost": lost}},
    )
