"""Rows of a ledger, made by hand."""

import numpy as np

from worker.data.epoch_plan import EpochPlan, Ids

SAMPLES, BATCH = 50, 12


STEPS = 5


def rows(first: int, stop: int) -> np.ndarray:
    """What a right run trains on in steps [first, stop)."""
    found = []
    for step in range(first, stop):
        plan = EpochPlan(np.array([20, 30]), BATCH, seed=0, epoch=step // STEPS)
        ids = plan.batch(step % STEPS)
        found.append(np.stack([np.full_like(ids, step), ids], axis=1))
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


def once(epoch: int) -> Ids:
    """How often an epoch is to see each sample."""
    return np.ones(SAMPLES, np.int64)
