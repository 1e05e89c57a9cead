"""Files for node exporter's textfile collector: one per rank, and one for the final outcome."""

import hashlib
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile

from worker.environment import Settings
from worker.metrics.run_labels import Owner


def write(registry: CollectorRegistry, owner: Owner, rank: int | None = None) -> None:
    """Write the metrics of a rank, or the outcome of a run, to a file, atomically.

    Does nothing if no folder is set.

    Args:
        registry: The metrics.
        owner: The run that they belong to.
        rank: The rank; None for the outcome.
    """
    folder = Settings.from_env().metrics_textfile
    if folder:
        write_to_textfile(str(textfile(folder, owner, rank)), registry)


def remove(owner: Owner, rank: int | None = None) -> None:
    """Remove the file of one rank, or all of the run's files on this node."""
    folder = Settings.from_env().metrics_textfile
    if not folder:
        return
    own = textfile(folder, owner, rank)
    found = [own] if rank is not None else Path(folder).glob(f"{own.stem}*.prom")
    for file in found:
        file.unlink(missing_ok=True)


def textfile(folder: str, owner: Owner, rank: int | None = None) -> Path:
    """Return the path of a metrics file, which differs for jobs that share only their name.

    Args:
        folder: The folder that a node exporter reads.
        owner: The run.
        rank: The rank; None for the outcome.

    Returns:
        The path.
    """
    name = f"worker-{owner.job}-{hashlib.sha256(owner.run.encode()).hexdigest()[:8]}"
    return Path(folder) / (f"{name}.prom" if rank is None else f"{name}-{rank}.prom")
