"""The blend of the weights at release and the final ones that validates best.

WiSE-FT (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022): weights between those of
the trained head on the pretrained backbone and the fine-tuned ones often generalize better than
either.
"""

import contextlib
import logging

import torch
import torch.distributed as dist
from torch import Tensor

from worker.checkpoint.commit import list_commits, read_commit
from worker.checkpoint.snapshot import restore_result
from worker.judge.figure_text import METRIC_NAMES, metric_text
from worker.judge.judgment import judge, score_of
from worker.model.weight_means import weighted_mean
from worker.ranks.leader import by_leader
from worker.train.attempt import Attempt
from worker.train.broadcast_state import shared
from worker.train.evaluator import Evaluator

log = logging.getLogger(__name__)


def load_best_blend(attempt: Attempt, validation: Evaluator) -> float | None:
    """Evaluate each blend of `final.blend`, and load the best one; all ranks call this together.

    Args:
        attempt: The attempt, whose learner has the final weights.
        validation: Evaluates on the validation set.

    Returns:
        The share of the final weights in the best blend, the first if several are equal; None if
        the checkpoint at release is gone, with the final weights loaded.
    """
    model = attempt.learner.result
    last = _copy(model.state_dict())
    start = _weights_at_release(attempt)
    if start is None:
        model.load_state_dict(last)
        return None
    metric, names = attempt.job.manifest.train.metric, attempt.job.train.index.classes
    scores: dict[float, float] = {}
    for share in attempt.job.manifest.final.blend or ():
        model.load_state_dict(weighted_mean([start, last], [1 - share, share]))
        result = validation.run(model)
        # Only rank 0 has the counts of all ranks.
        score = None
        if attempt.leads:
            figure = judge(result.findings.tally, names).metric(metric)
            score = score_of(figure.value, metric)
            text = metric_text(metric, figure)
            log.info(
                "final.blend: %g of the final weights: %s %s", share, METRIC_NAMES[metric], text
            )
        score = shared(score)
        if score is not None:
            scores[share] = score
    best = max(scores, key=lambda share: scores[share], default=1.0)
    model.load_state_dict(weighted_mean([start, last], [1 - best, best]))
    return best


def _weights_at_release(attempt: Attempt) -> dict[str, Tensor] | None:
    """Load the weights at release into all ranks, and return a copy; None if they are gone."""
    found = False
    with by_leader("weights at release", attempt.watchdog.beat) as leads:
        if leads:
            found = _restore(attempt)
    if not shared(found):
        return None
    state = attempt.learner.result.state_dict()
    if dist.get_world_size() > 1:
        for tensor in state.values():
            dist.broadcast(tensor, src=0)
    return _copy(state)


def _restore(attempt: Attempt) -> bool:
    store, release = attempt.job.output, attempt.job.first_release
    for name in list_commits(store):
        if name.step == release:
            parts = read_commit(store, name)
            with contextlib.suppress(ValueError):
                if parts:
                    restore_result(parts, attempt.learner)
                    return True
    log.warning(
        "final.blend: there is no intact checkpoint of step %s, at release; "
        "writing the final weights as they are",
        release,
    )
    return False


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.clone(tensor) for name, tensor in state.items()}
