"""The export of a run to the tracker that an address names."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from worker.errors import ConfigurationError
from worker.report.read_run import read_run
from worker.store import open_store
from worker.trackers.series import tracked

_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
"""The package that each tracker needs, by the kind of address."""


def export_run(run: str, target: str) -> str:
    """Export a run; return where it is in the tracker.

    Args:
        run: The address of the run.
        target: `tensorboard:DIR`, `mlflow:URL` or `wandb:DIR`.

    Raises:
        ConfigurationError: If the target is malformed or cannot be written, or its package is
            missing.
        InfrastructureError: If a server does not answer.
    """
    kind, colon, place = target.partition(":")
    if kind not in _PACKAGES or not colon or not place:
        raise ConfigurationError(
            f"--to: {target!r} is none of tensorboard:DIR, mlflow:URL and wandb:DIR"
        )
    if kind == "mlflow" and not place.startswith(("http://", "https://", "databricks")):
        raise ConfigurationError(
            f"--to: {target!r}: give the address of the server, as in mlflow:http://HOST:PORT"
        )
    if importlib.util.find_spec(kind) is None:
        raise ConfigurationError(
            f"--to {kind}: needs the package {_PACKAGES[kind]}; pip install {_PACKAGES[kind]}"
        )
    found = tracked(read_run(open_store(run)))
    module: Any = importlib.import_module(f"worker.trackers.{kind}")
    export = getattr(module, f"export_to_{kind}")
    try:
        return str(export(found, place if kind == "mlflow" else Path(place)))
    except OSError as error:
        raise ConfigurationError(
            f"--to {kind}: {place}: {error.strerror or error}; check the path and its permissions"
        ) from None
