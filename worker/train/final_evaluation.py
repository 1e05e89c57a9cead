"""The evaluation of the model that a job writes to `final/`."""

import contextlib
import logging

import torch.distributed as dist

from worker.checkpoint.commit import list_commits, read_commit
from worker.checkpoint.snapshot import restore_result
from worker.judge.calibration import fit_temperature
from worker.judge.figure_text import share_text
from worker.judge.final_figures import FinalFigures
from worker.judge.judgment import judge
from worker.judge.tally import Tally
from worker.judge.thresholds import Threshold, thresholds_for
from worker.learn.evaluation import Findings
from worker.ranks.leader import by_leader
from worker.train.attempt import Attempt
from worker.train.batches import TEST
from worker.train.broadcast_state import shared
from worker.train.evaluator import Evaluator
from worker.train.final_blend import load_best_blend
from worker.train.loaders import JobLoaders
from worker.train.validation import Validated

log = logging.getLogger(__name__)


def evaluate_final(
    attempt: Attempt,
    loaders: JobLoaders,
    validation: Evaluator | None,
    validated: Validated | None,
) -> FinalFigures:
    """Load the weights that the manifest asks for, and evaluate them; called by all ranks together.

    The judgments are known to rank 0 alone.

    Args:
        attempt: The attempt.
        loaders: The source of batches.
        validation: Evaluates on the validation set, if there is one.
        validated: The last validation of this attempt, which is not repeated.

    Raises:
        StopRequested: If a stop was requested; the next attempt evaluates them anew.
    """
    job, step = attempt.job, _load_weights(attempt)
    names, demanded = job.train.index.classes, job.manifest.final.thresholds
    temperature, tally, blend = 1.0, None, None
    if validation and job.manifest.final.blend:
        blend = load_best_blend(attempt, validation)
        validated = validated if blend is None else None  # it was one of other weights
    if validation:
        temperature, tally = _validate(attempt, validation, validated, step)
    tested = None
    if job.test:
        evaluator = Evaluator(attempt, TEST, job.test, loaders)
        result = evaluator.run(attempt.learner.result, temperature=temperature)
        if attempt.leads:
            attempt.evaluations.write("test", step, result.findings, result.pictures)
            tested = judge(result.findings.tally, names)
            log.info("test accuracy %s", share_text(tested.accuracy))
    thresholds: tuple[Threshold, ...] = ()
    if tally and demanded:
        thresholds = thresholds_for(tally.histograms, names, demanded.precision)
    return FinalFigures(
        step=step,
        blend=blend,
        temperature=temperature,
        thresholds=thresholds,
        validation=judge(tally, names) if tally and attempt.leads else None,
        test=tested,
    )


def _validate(
    attempt: Attempt, validation: Evaluator, validated: Validated | None, step: int
) -> tuple[float, Tally]:
    """Return the temperature, and the sums over the validation set that it leads to."""
    calibrate = attempt.job.manifest.final.calibrate
    known = validated if validated and validated.step == step else None
    if known and not calibrate:
        return 1.0, known.findings.tally
    result = validation.run(attempt.learner.result, keep_logits=calibrate)
    temperature = _fitted_temperature(result.findings) if calibrate else 1.0
    if temperature != 1:
        if attempt.leads:
            log.info("final.calibrate: the temperature is %.4g", temperature)
        # Once more, as the pictures and the suspected labels depend on the temperature, too.
        result = validation.run(attempt.learner.result, temperature=temperature)
    if attempt.leads and (temperature != 1 or not known):
        # In place of the sums before calibration, so that a report shows one kind of them.
        attempt.evaluations.write("val", step, result.findings, result.pictures)
    return temperature, result.findings.tally


def _load_weights(attempt: Attempt) -> int:
    """Load the weights that the manifest asks for into all ranks; return their step."""
    state = attempt.state
    if attempt.job.manifest.final.weights == "last" or state.best_step in (None, state.step):
        return state.step
    step = state.step
    with by_leader("final weights", attempt.watchdog.beat) as leads:
        if leads:
            step = _restore_best(attempt)
    step = int(shared(step))
    if step != state.step and dist.get_world_size() > 1:
        for tensor in attempt.learner.result.state_dict().values():
            dist.broadcast(tensor, src=0)
    return step


def _restore_best(attempt: Attempt) -> int:
    """Load the weights of the best evaluation on this rank, if their checkpoint is intact."""
    state, store = attempt.state, attempt.job.output
    for name in list_commits(store):
        if name.step == state.best_step:
            parts = read_commit(store, name)
            # A part may be intact and still not be a valid tensor file, if its writer was faulty.
            with contextlib.suppress(ValueError):
                if parts:
                    restore_result(parts, attempt.learner)
                    return name.step
    log.warning(
        "final.weights: the checkpoint of the best step, %d, is not intact; "
        "writing the weights of the last step instead",
        state.best_step,
    )
    return state.step


def _fitted_temperature(findings: Findings) -> float:
    """Return the temperature that fits the predictions best; 1 if none does."""
    assert findings.logits is not None  # noqa: S101 -- the evaluation was told to keep them
    temperature = fit_temperature(findings.logits, findings.labels)
    if temperature is None:
        if dist.get_rank() == 0:
            log.warning(
                "final.calibrate: no temperature fits, as all images of data.val are right, or the "
                "predictions say nothing; the model is left as it is"
            )
        return 1.0
    return temperature
