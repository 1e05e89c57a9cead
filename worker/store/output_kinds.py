"""The kinds of outputs, which must not share an address: each would take the other's objects."""

from worker.errors import ConfigurationError
from worker.layout import ATTEMPTS, INDEX_NAME, PREDICTION_NAME, SWEEP_NAME
from worker.store.interface import ObjectMissing, Store

JOB, SWEEP, DATASET, PREDICTION = "a job", "a sweep", "a data set", "a prediction"
_MARKS = {SWEEP: SWEEP_NAME, DATASET: INDEX_NAME, PREDICTION: PREDICTION_NAME}


def require_no_other_kind(store: Store, own: str, remedy: str) -> None:
    """Raise `ConfigurationError` if an output holds anything of another kind.

    Args:
        store: The output.
        own: Its kind: `JOB`, `SWEEP`, `DATASET` or `PREDICTION`.
        remedy: What to do about it.
    """
    for kind in (JOB, *_MARKS):
        mark = _mark(store, kind) if kind != own else ""
        if mark:
            raise ConfigurationError(f"{store.uri} holds {kind} ({mark}); {remedy}")


def _mark(store: Store, kind: str) -> str:
    """Return the name of an object that only this kind of output has; empty if there is none."""
    if kind == JOB:
        return next((info.key for info in store.list(ATTEMPTS)), "")
    try:
        store.get(_MARKS[kind], 0, 1)
    except ObjectMissing:
        return ""
    return _MARKS[kind]
