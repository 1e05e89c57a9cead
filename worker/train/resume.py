"""How an attempt begins: it takes a number and goes on from the newest whole checkpoint."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.checkpoint.attempt import claim_attempt
from worker.checkpoint.commit import CommitName, list_commits, read_commit
from worker.checkpoint.done import read_done
from worker.checkpoint.snapshot import read_state, restore_snapshot
from worker.logs import bind
from worker.metrics.registry import Metrics
from worker.model.learner import Learner
from worker.model.weights import load_pretrained
from worker.train.distributed import total
from worker.train.job import Job, as_found, require_same_experiment
from worker.train.outline import outline_job
from worker.train.rank import Rank
from worker.train.share import share_learner, shared, wait_for_rank_0
from worker.train.state import State
from worker.train.surroundings import show_surroundings, surroundings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """Where an attempt stands at its start; `commit` is what it goes on from, if anything."""

    attempt: int
    state: State
    commit: CommitName | None
    done: bool
    """Whether another attempt has finished the job meanwhile."""


def begin_attempt(
    job: Job, rank: Rank, learner: Learner, metrics: Metrics, beat: Callable[[], None]
) -> Resumed:
    """Claim an attempt and restore the newest checkpoint that is whole.

    Rank 0 reads and verifies it, and the others get it from there. To be called by all ranks
    together; each calls `beat` while it waits.
    """
    facts = surroundings(rank, learner.precision)
    show_surroundings(facts, metrics)
    attempt = _claim(job, rank, facts)
    bind(attempt=attempt)
    metrics.attempt().set(attempt)
    found = _Found(State(), None, 0, False)
    if rank.rank == 0:
        found = _restore(job, learner, metrics, beat)
    wait_for_rank_0(beat)
    found = shared(found)
    if found.done:
        return Resumed(attempt, State(), None, True)
    if found.commit or job.manifest.model.pretrained:
        share_learner(learner)
    metrics.step().set(found.state.step)
    metrics.resume_step().set(found.state.step)
    metrics.steps_lost().set(found.lost)
    if rank.rank == 0:
        _announce(job, rank, attempt, found.state.step, found.lost)
    return Resumed(attempt, found.state, found.commit, False)


@dataclass(frozen=True)
class _Found:
    """State of the job in its output as rank 0 has found it, and the steps lost to get there."""

    state: State
    commit: CommitName | None
    lost: int
    done: bool


def _restore(job: Job, learner: Learner, metrics: Metrics, beat: Callable[[], None]) -> _Found:
    # After the claim: from here on an older attempt commits nothing more.
    commits = list_commits(job.output)
    if read_done(job.output):
        return _Found(State(), None, 0, True)
    for name in commits:
        parts = read_commit(job.output, name, beat)
        try:
            if parts:
                state = State.of(read_state(parts))
                restore_snapshot(parts, learner)
                return _Found(state, name, commits[0].step - state.step, False)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s cannot be read (%s), trying an older one", name, error)
        parts = None  # before the next is in memory
        metrics.invalid_checkpoints().inc()
    if job.commits and job.manifest.model.pretrained:
        # With no checkpoint at all they have been loaded with the job.
        load_pretrained(job.backbone, job.manifest.model.pretrained)
        if learner.average:
            learner.average.module.load_state_dict(learner.model.state_dict())
    return _Found(State(), None, commits[0].step if commits else 0, False)


def _claim(job: Job, rank: Rank, facts: Mapping[str, Any]) -> int:
    number = 0
    if rank.rank == 0:
        number = claim_attempt(job.output, job.identity)
        if number > (job.earlier.attempt if job.earlier else 0) + 1:
            # Somebody has started since the job was opened, and it may be another experiment.
            require_same_experiment(as_found(job, number - 1))
        noted = [str(change) for change in job.changes if change.kind == "noted"]
        if noted:
            log.warning("changed since the last attempt: %s", "; ".join(noted))
        plan = outline_job(job, rank.world_size).as_dict()
        text = job.manifest.model_dump_json(indent=1)
        job.output.put("manifest.json", text.encode())
        for name, kept in (("environment", facts), ("plan", plan)):
            data = json.dumps(kept, indent=1).encode()
            job.output.put(f"records/{number:06d}/{name}.json", data)
    return int(total(number)[0])


def _announce(job: Job, rank: Rank, attempt: int, step: int, lost: int) -> None:
    if lost:
        where = f"after step {step}" if step else "from the start"
        log.warning(
            "the newest checkpoint that is whole lets the job go on %s; %d steps are done again",
            where,
            lost,
        )
    log.info(
        "job %s, attempt %d %s of %d; ranks: %d",
        job.manifest.job,
        attempt,
        f"resumes after step {step}" if step else "starts at step 0",
        job.total_steps,
        rank.world_size,
        extra={"fields": {"event": "start", "attempt": attempt, "step": step, "steps_lost": lost}},
    )
