"""A learning-rate range test (Smith, 2017) that keeps the manifest's ratios between groups."""

import itertools
import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing

import torch

from worker.data.batch_requests import Request
from worker.data.loader import Batch
from worker.errors import ConfigurationError, StopRequested
from worker.job.job import Job
from worker.learn.rate_sweep import Sweep, make_sweep, smooth
from worker.learn.training_step import Engine
from worker.model.learner import build_learner
from worker.model.optimizer import set_rates
from worker.model.schedule import Factor
from worker.ranks.cpu_cores import cores_per_rank
from worker.ranks.process_group import device_of
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.train.batches import TRAIN
from worker.train.diagnose_rates import released
from worker.train.loaders import JobLoaders
from worker.train.train_head import train_head

_DIVERGED = 4.0  # times the lowest smoothed loss, as in fastai's `lr_find`


def sweep_rates(
    job: Job,
    rank: Rank,
    loaders: JobLoaders,
    *,
    steps: int,
    low: float,
    high: float,
    stop: StopFlag,
    advance: Callable[[int], None],
) -> Sweep:
    """Train from the initial weights while the base rate grows exponentially.

    The head of a pretrained model is trained first, unless nothing else is trained: its random
    start would determine the loss.
    Every group keeps its ratio to the base rate, and all except permanently frozen ones are
    trained. Ends early once the smoothed loss exceeds four times its minimum. The trained weights
    are discarded.

    Args:
        job: The job.
        rank: This rank, the only one.
        loaders: The loaders of training batches.
        steps: The number of steps.
        low: The lowest base rate.
        high: The highest base rate.
        stop: The flag that a stop signal sets.
        advance: Called with 1 after each step.

    Returns:
        The loss at each rate.

    Raises:
        ConfigurationError: If the sweep ends too early to be conclusive.
    """
    device = device_of(rank)
    torch.set_num_threads(cores_per_rank(rank))
    groups = tuple(released(group) for group in job.groups)
    learner = build_learner(job.backbone.model, groups, job.manifest, device)
    optimizer = job.manifest.optimizer
    engine = Engine(
        learner,
        job.preprocessing,
        job.criterion,
        train=job.manifest.train,
        clip_norm=optimizer.clip_norm,
        rank=rank,
        full_batch=job.full_batch,
    )
    rates: list[float] = []
    losses: list[float] = []
    with ExitStack() as stack:
        loaders.start()
        if job.manifest.model.pretrained and _trains_backbone(job):
            train_head(
                job,
                learner.model,
                rank,
                loaders,
                precision=learner.precision,
                advance=lambda _: require_no_stop(stop),
            )
        batches = stack.enter_context(closing(_endless(job, loaders)))
        for step, (batch, size) in enumerate(itertools.islice(batches, steps)):
            require_no_stop(stop)
            # Evenly spaced on a logarithmic scale, with both ends included.
            rates.append(low * (high / low) ** (step / max(1, steps - 1)))
            set_rates(learner.optimizer, Factor(rates[-1] / optimizer.lr))
            outcome = engine.step(step, batch, size, loaders.feed.blend(step))
            loss, _, counted = outcome.sums.tolist()
            # Infinity ends the sweep; `make_sweep` leaves it out.
            losses.append(loss / counted if outcome.finite and counted else math.inf)
            if step == 0 and counted and math.isinf(losses[0]):
                raise ConfigurationError(
                    "the loss is not finite even before the first update; check model.weights, "
                    "train.precision and the images"
                )
            advance(1)
            smoothed = smooth(losses)
            if smoothed[-1] > _DIVERGED * min(smoothed):
                break
    return make_sweep(rates, losses, diverged=len(rates) < steps)


def _trains_backbone(job: Job) -> bool:
    head = job.backbone.layout.head
    return any(g.release is not None and not head.issuperset(g.parameters) for g in job.groups)


def require_no_stop(stop: StopFlag) -> None:
    """Raise `StopRequested` if a stop was requested."""
    if stop.requested:
        raise StopRequested("stopped on request; the results of the sweep are discarded")


def _endless(job: Job, loaders: JobLoaders) -> Generator[tuple[Batch, int]]:
    """Yield the job's batches with their global sizes, epoch after epoch."""
    for epoch in itertools.count():
        plan = job.plan(epoch)
        with closing(loaders.batches(Request(dataset=TRAIN, epoch=epoch))) as batches:
            for step, batch in enumerate(batches):
                yield batch, plan.size(step)
