"""The end of a job: wait for the last commit, evaluate, then write the model and `done.json`."""

import logging
import time
from typing import Any

from worker.checkpoint.output_owner import IDENTITY
from worker.checkpoint.publish import publish, settle
from worker.errors import Superseded
from worker.job.job import manifest_digest
from worker.judge.figure_text import METRIC_NAMES, metric_text, share_text
from worker.judge.final_figures import FinalFigures
from worker.judge.measure import Measure
from worker.plain import plain
from worker.ranks.leader import by_leader
from worker.ranks.process_group import total
from worker.record.cost import cost_of
from worker.record.history import read_history
from worker.train.attempt import Attempt
from worker.train.evaluator import Evaluator
from worker.train.final_evaluation import evaluate_final
from worker.train.final_model import stage_result
from worker.train.loaders import JobLoaders
from worker.train.validation import Validated

log = logging.getLogger(__name__)


def finish(
    attempt: Attempt,
    loaders: JobLoaders,
    validation: Evaluator | None,
    validated: Validated | None,
) -> None:
    """Write the result of a job that has finished training; called by all ranks together.

    Args:
        attempt: The attempt.
        loaders: The source of batches.
        validation: Evaluates on the validation set, if there is one.
        validated: The last validation of this attempt, if it made one.
    """
    state = attempt.state
    attempt.drain()
    attempt.recorder.take(state.step)()
    attempt.journal.flush()
    figures = evaluate_final(attempt, loaders, validation, validated)
    total(0)  # waits until the records of every rank are written
    with by_leader("finished", attempt.watchdog.beat) as leads:
        if leads:
            _write(attempt, figures)


def _write(attempt: Attempt, figures: FinalFigures) -> None:
    job, state = attempt.job, attempt.state
    epochs = job.manifest.train.epochs
    if settle(job.output, epochs, attempt.watchdog.beat):
        log.info("job %s has meanwhile been finished by another attempt", job.manifest.job)
        return
    validation = figures.validation
    accuracy = validation.accuracy if validation else Measure()
    weights = {"step": figures.step, "accuracy": accuracy.value, "blend": figures.blend}
    result: dict[str, Any] = {"epochs": epochs, **state.as_dict(), "weights": weights}
    result["manifest"] = manifest_digest(job.manifest)
    result[IDENTITY] = dict(job.identity)
    durable = attempt.durable
    # Only saves a superseded attempt the exports. The check that matters, which fences the result
    # off, is the one that `publish` makes.
    durable.ensure_newest()
    beat = attempt.watchdog.beat
    parts = stage_result(
        job, durable.attempt, attempt.learner.result, figures=figures, result=result, beat=beat
    )
    attempt.journal.flush()
    result["cost"] = plain(cost_of(read_history(job.output)).model_dump())
    if not publish(
        job.output, durable.attempt, parts, result=result, check=durable.ensure_newest, beat=beat
    ):
        raise Superseded("another attempt has meanwhile finished the job")
    attempt.metrics.last_success().set(time.time())
    told = f"accuracy {share_text(accuracy) if validation else 'not measured'}"
    metric = job.manifest.train.metric
    if validation and metric != "accuracy":
        told = f"{METRIC_NAMES[metric]} {metric_text(metric, validation.metric(metric))}"
    log.info(
        "done: %d steps; the model of %s, validation %s, is at %sfinal/",
        state.step,
        figures.source,
        told,
        job.output.uri,
        extra={"fields": {"event": "done", **state.as_dict()}},
    )
