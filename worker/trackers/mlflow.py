"""A run in an MLflow server; a second export adds what is new."""

import math
import os
from itertools import islice

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from worker.errors import InfrastructureError
from worker.store.aws_settings import address_in
from worker.trackers.series import Point, TrackedRun

_EXPERIMENT = "worker"
_TAG = "worker.output"
_BATCH, _MAX_PARAMS, _MAX_TEXT = 1000, 100, 500


def export_to_mlflow(run: TrackedRun, url: str) -> str:
    """Write a run to the experiment `worker` of a server; return its id there.

    There is one run per output: it is found by a tag, and only the points that it lacks are added.

    Raises:
        InfrastructureError: If the server cannot be reached or refuses the data.
    """
    # Its own defaults would retry for many minutes, without a word.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    try:
        client = MlflowClient(tracking_uri=url)
        run_id = _run_id(client, run)
        for params in _chunks(
            [Param(_key(name), text[:_MAX_TEXT]) for name, text in run.settings.items()]
        ):
            client.log_batch(run_id, params=params)
        results = {name: [Point(0, run.ended, value)] for name, value in run.results.items()}
        for name, points in (run.series | results).items():
            known = {(m.step, m.timestamp) for m in client.get_metric_history(run_id, _key(name))}
            fresh = [
                Metric(_key(name), value, round(1000 * at), step)
                for step, at, value in points
                if math.isfinite(value) and (step, round(1000 * at)) not in known
            ]
            for start in range(0, len(fresh), _BATCH):
                client.log_batch(run_id, metrics=fresh[start : start + _BATCH])
        status = "FINISHED" if run.state == "done" else "RUNNING"
        status = "FAILED" if run.state.startswith("failed") else status
        client.update_run(run_id, status=status)
        if status != "RUNNING":
            client.set_terminated(run_id, status, round(1000 * run.ended))
    except MlflowException as error:
        text = str(error).splitlines()[0]
        if "Max retries exceeded" in text:
            text = f"{address_in(url)} cannot be reached"
        raise InfrastructureError(f"--to mlflow: {text}; check the address") from None
    return run_id


def _run_id(client: MlflowClient, run: TrackedRun) -> str:
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(_EXPERIMENT)
    found = client.search_runs([number], f"tags.`{_TAG}` = '{run.uri}'", max_results=1)
    if found:
        known: str = found[0].info.run_id
        return known
    created = client.create_run(
        number, start_time=round(1000 * run.began), tags={_TAG: run.uri}, run_name=run.name
    )
    new: str = created.info.run_id
    return new


def _chunks(params: list[Param]) -> list[list[Param]]:
    rest = iter(params)
    return list(iter(lambda: list(islice(rest, _MAX_PARAMS)), []))


def _key(name: str) -> str:
    """Return a name with the characters that MLflow allows."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
