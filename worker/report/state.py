"""The state of whatever an output holds: a job, a sweep or a prediction."""

from typing import Any

from worker.apply.prediction_plan import read_plan as read_prediction
from worker.report.prediction_status import describe_prediction, read_prediction_status
from worker.report.status import describe_status, read_status
from worker.report.sweep_status import describe_sweep_status, read_sweep_status
from worker.store import Store
from worker.sweep.plan import read_plan as read_sweep


def read_state(store: Store) -> tuple[str, dict[str, Any], str]:
    """Return the state of an output in a word, all facts as JSON data, and the same as text.

    Raises `ConfigurationError` if the output holds nothing.
    """
    prediction = read_prediction(store)
    if prediction:
        predicted = read_prediction_status(prediction, store)
        return predicted.state, predicted.as_dict(), describe_prediction(predicted)
    sweep = read_sweep(store)
    if sweep:
        swept = read_sweep_status(sweep, store)
        return swept.state, swept.as_dict(), describe_sweep_status(sweep, swept)
    found = read_status(store)
    return found.state, found.as_dict(), describe_status(found)
