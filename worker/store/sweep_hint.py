"""A hint for those who give the output of a sweep where that of a job is wanted."""

from worker.layout import SWEEP_NAME
from worker.store.interface import ObjectMissing, Store


def sweep_hint(store: Store, otherwise: str) -> str:
    """Return what to pass instead of an output that holds no job.

    Args:
        store: The output.
        otherwise: What to say unless it is that of a sweep.
    """
    try:
        store.get(SWEEP_NAME, 0, 1)
    except ObjectMissing:
        return otherwise
    return "it is the output of a sweep: pass that of one of its jobs, below trials/"
