"""The audit of an output: what was trained on or predicted, compared with the plan."""

import numpy as np

from worker.apply.prediction_index import audit_predictions, read_prediction_index
from worker.apply.prediction_plan import PredictionPlan, read_plan
from worker.checkpoint.commit import list_commits, read_commit_record
from worker.data.epoch_plan import steps_per_epoch
from worker.data.index import parse_address, read_index
from worker.errors import DataError
from worker.job.dataset import Dataset
from worker.job.sampling import describe_sampling, open_multiplicities, sampling_of
from worker.logs import count
from worker.manifest import check_manifest
from worker.record.ledger_audit import (
    EpochAudit,
    audit_epochs,
    describe_audit,
    read_last_attempt,
    read_ledger,
    require_known_rows,
    require_same_data,
    require_same_sampling,
    surviving_rows,
)
from worker.store import Store, open_store


def audit_output(uri: str) -> tuple[list[str], int]:
    """Audit the output of a training job or of a prediction.

    Returns:
        Lines for a person, and the number of samples lost or repeated.

    Raises:
        DataError: If the ledger is damaged, or predictions are not as planned.
        ConfigurationError: If there is nothing to audit, or the data has changed.
    """
    store = open_store(uri)
    prediction = read_plan(store)
    if prediction:
        return [_audit_prediction(store, prediction)], 0
    audits, lines = _audit_training(store)
    return lines, sum(audit.faults for audit in audits)


def _audit_prediction(store: Store, prediction: PredictionPlan) -> str:
    problems = audit_predictions(prediction, store)
    if problems:
        raise DataError("\n  ".join([f"{store.uri}: not as planned:", *problems]))
    parts = count(len(prediction.parts), "part")
    whole = read_prediction_index(store)
    bad = f", but {whole.bad} could not be used" if whole and whole.bad else ""
    return f"{count(prediction.images, 'image')} in {parts}: each exactly once{bad}"


def _audit_training(store: Store) -> tuple[list[EpochAudit], list[str]]:
    attempt = read_last_attempt(store)
    manifest = check_manifest(dict(attempt.manifest), f"{store.uri}: manifest of the last attempt")
    address = parse_address(manifest.data.train)
    train = Dataset(address.store, read_index(address))
    rows = surviving_rows(read_ledger(store))
    require_same_data(store, train.index, attempt.identity.get("data.train"))
    sampling = sampling_of(manifest.data)
    require_same_sampling(store, describe_sampling(sampling), attempt.identity)
    found = open_multiplicities(train, sampling, manifest.train.seed)
    once = np.ones(train.samples, np.int64)
    samples, batch_size = found.per_epoch if found else train.samples, manifest.train.batch_size
    limit = steps_per_epoch(samples, batch_size) * manifest.train.epochs
    require_known_rows(rows, train.samples, limit, store.uri)
    commits = (name for name in list_commits(store) if name.step <= limit)
    done = next((name.step for name in commits if read_commit_record(store, name)), 0)
    planned_of = found.of_epoch if found else lambda _: once
    audits = audit_epochs(rows, planned_of, batch_size, done)
    return audits, describe_audit(audits, train.index, samples)
