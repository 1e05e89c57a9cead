"""The kinds of outputs, which must not share an address: each would take the other's objects."""

from worker.errors import ConfigurationError
from worker.layout import ATTEMPTS, CARD_NAME, FINAL, INDEX_NAME, PREDICTION_NAME, SWEEP_NAME
from worker.store.interface import ObjectMissing, Store

JOB, SWEEP, DATASET = "a job", "a sweep", "a data set"
PREDICTION, MODEL = "a prediction", "a model"  # as `worker average` writes it, without a job
_MARKS = {
    SWEEP: SWEEP_NAME,
    DATASET: INDEX_NAME,
    PREDICTION: PREDICTION_NAME,
}


def require_no_other_kind(store: Store, own: str, remedy: str) -> None:
    """Raise `ConfigurationError` if an output holds anything of another kind.

    Args:
        store: The output.
        own: Its kind: `JOB`, `SWEEP`, `DATASET`, `PREDICTION` or `MODEL`.
        remedy: What to do about it.
    """
    attempt = next((info.key for info in store.list(ATTEMPTS)), "")
    marks = {JOB: attempt} if attempt else {MODEL: FINAL + CARD_NAME}  # a job's model is its own
    for kind, mark in (marks | _MARKS).items():
        if kind != own and (mark == attempt or _holds(store, mark)):
            raise ConfigurationError(f"{store.uri} holds {kind} ({mark}); {remedy}")


def _holds(store: Store, name: str) -> bool:
    try:
        store.get(name, 0, 1)
    except ObjectMissing:
        return False
    return True
