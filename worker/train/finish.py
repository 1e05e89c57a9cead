"""The end of a job: wait for the last commit, then write the model and `done.json`."""

import contextlib
import logging
import time
from typing import Any

from worker.checkpoint.commit import list_commits, read_commit
from worker.checkpoint.output_owner import IDENTITY
from worker.checkpoint.publish import publish, settle
from worker.checkpoint.snapshot import restore_result
from worker.errors import Superseded
from worker.job.job import manifest_digest
from worker.ranks.leader import by_leader
from worker.ranks.process_group import total
from worker.train.attempt import Attempt
from worker.train.final_model import stage_result

log = logging.getLogger(__name__)


def finish(attempt: Attempt) -> None:
    """Write the result of a job that has finished training; called by all ranks together."""
    state = attempt.state
    attempt.drain()
    attempt.recorder.take(state.step)()
    attempt.journal.flush()
    total(0)  # waits until the records of every rank are written
    with by_leader("finished", attempt.watchdog.beat) as leads:
        if leads:
            _write(attempt)


def _write(attempt: Attempt) -> None:
    job, state = attempt.job, attempt.state
    epochs = job.manifest.train.epochs
    if settle(job.output, epochs, attempt.watchdog.beat):
        log.info("job %s has meanwhile been finished by another attempt", job.manifest.job)
        return
    weights = _choose_weights(attempt)
    result: dict[str, Any] = {"epochs": epochs, **state.as_dict(), "weights": weights}
    result["manifest"] = manifest_digest(job.manifest)
    result[IDENTITY] = dict(job.identity)
    durable = attempt.durable
    # Only saves a superseded attempt the exports. The check that matters, which fences the result
    # off, is the one that `publish` makes.
    durable.ensure_newest()
    beat = attempt.watchdog.beat
    parts = stage_result(job, durable.attempt, attempt.learner.result, result, beat)
    if not publish(
        job.output, durable.attempt, parts, result=result, check=durable.ensure_newest, beat=beat
    ):
        raise Superseded("another attempt has meanwhile finished the job")
    attempt.metrics.last_success().set(time.time())
    accuracy = "not measured" if weights["accuracy"] is None else f"{weights['accuracy']:.2%}"
    log.info(
        "done: %d steps; the model of step %d, validation accuracy %s, is at %sfinal/",
        state.step,
        weights["step"],
        accuracy,
        job.output.uri,
        extra={"fields": {"event": "done", **state.as_dict()}},
    )


def _choose_weights(attempt: Attempt) -> dict[str, Any]:
    """Load the weights that the manifest asks for; return their step and accuracy."""
    state, store = attempt.state, attempt.job.output
    last = {"step": state.step, "accuracy": state.accuracy}
    if attempt.job.manifest.final.weights == "last" or state.best_step in (None, state.step):
        return last
    for name in list_commits(store):
        if name.step == state.best_step:
            parts = read_commit(store, name)
            # A part may be intact and still not be a valid tensor file, if its writer was faulty.
            with contextlib.suppress(ValueError):
                if parts:
                    restore_result(parts, attempt.learner)
                    return {"step": name.step, "accuracy": state.best_accuracy}
    log.warning(
        "final.weights: the checkpoint of the best step, %d, is not intact; "
        "writing the weights of the last step instead",
        state.best_step,
    )
    return last
