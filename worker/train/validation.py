"""The evaluation after an epoch: its figures, records, metrics and log line."""

import logging
import math
from dataclasses import dataclass

from worker.errors import Diverged
from worker.judge.figure_text import METRIC_NAMES, metric_text
from worker.judge.judgment import judge, score_of
from worker.judge.measure import Measure
from worker.learn.evaluation import Findings
from worker.record.events import EvaluationEvent
from worker.train.attempt import Attempt
from worker.train.broadcast_state import shared
from worker.train.evaluator import Evaluated, Evaluator

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Validated:
    """A validation that was made in this attempt."""

    step: int
    """The step after which it was made."""
    findings: Findings
    """What it found."""


def validate(attempt: Attempt, validation: Evaluator) -> Validated:
    """Evaluate the current model on the validation set; all ranks call it together.

    Raises:
        StopRequested: If a stop was requested.
        Diverged: If the loss is not finite and the manifest does not allow that.
    """
    state, train = attempt.state, attempt.job.manifest.train
    result = validation.run(attempt.learner.result)
    # Only rank 0 has the confusion counts of all ranks.
    event: EvaluationEvent = shared(_event(attempt, result) if attempt.leads else None)
    if attempt.leads:
        attempt.evaluations.write("val", state.step, result.findings, result.pictures)
        # `best_step` is still that of an earlier evaluation.
        attempt.evaluations.keep(state.step, state.best_step)
    state.note_evaluation(
        loss=event.loss,
        accuracy=event.accuracy,
        score=score_of(event.value, event.metric),
        min_delta=train.early_stop.min_delta if train.early_stop else 0.0,
    )
    _tell(attempt, event)
    if event.loss is None:
        _refuse_loss(attempt)
    return Validated(step=state.step, findings=result.findings)


def _event(attempt: Attempt, result: Evaluated) -> EvaluationEvent:
    job, tally = attempt.job, result.findings.tally
    judgment = judge(tally, job.train.index.classes)
    metric = job.manifest.train.metric
    figure = judgment.metric(metric)
    return EvaluationEvent(
        epoch=attempt.state.step // job.steps_per_epoch,
        step=attempt.state.step,
        loss=None if tally.not_finite else judgment.log_loss.value,
        accuracy=judgment.accuracy.value or 0.0,
        top5_accuracy=judgment.top5_accuracy.value,
        metric=metric,
        # Figures over the images that a diverging model can still say something about must not make
        # it the best.
        value=None if tally.not_finite else figure.value,
        low=figure.low,
        high=figure.high,
        best=_best(attempt, Measure() if tally.not_finite else figure),
    )


def _best(attempt: Attempt, figure: Measure) -> float | None:
    """Return the best value of the metric so far, `figure` included."""
    metric, best = attempt.job.manifest.train.metric, attempt.state.best_score
    scores = [score for score in (best, score_of(figure.value, metric)) if score is not None]
    return score_of(max(scores), metric) if scores else None


def _tell(attempt: Attempt, event: EvaluationEvent) -> None:
    """Write an evaluation to the metrics, the history, the progress record and the log."""
    metrics, name = attempt.metrics, event.metric
    loss = math.nan if event.loss is None else event.loss
    metrics.accuracy("validation").set(event.accuracy)
    metrics.loss("validation").set(loss)
    metrics.best_accuracy().set(attempt.state.best_accuracy or 0.0)
    for gauge, value in (
        (metrics.metric, event.value),
        (metrics.metric_low, event.low),
        (metrics.metric_high, event.high),
        (metrics.best_metric, event.best),
    ):
        gauge(name).set(math.nan if value is None else value)
    # Without figures by class: those of thousands of classes would fill most of the history.
    attempt.journal.note(event)
    if not attempt.leads:
        return
    figure = metric_text(name, Measure(value=event.value, low=event.low, high=event.high))
    best = metric_text(name, Measure(value=event.best, low=event.best, high=event.best))
    accuracy = "" if name == "accuracy" else f"  accuracy {event.accuracy:.2%}"
    log.info(
        "epoch %d/%d  validation %s %s%s  loss %.4f  best %s",
        event.epoch,
        attempt.job.manifest.train.epochs,
        METRIC_NAMES[name],
        figure,
        accuracy,
        loss,
        best.partition(" ")[0],
        extra={"fields": event.__dict__},
    )


def _refuse_loss(attempt: Attempt) -> None:
    """End the job, or warn, if the validation loss is not finite."""
    text = "the validation loss is not finite"
    if attempt.job.manifest.train.non_finite == "fail":
        attempt.commit()
        raise Diverged(f"optimizer.lr: {text}; lower the rates" if attempt.leads else "")
    if attempt.leads:
        log.warning(text)
