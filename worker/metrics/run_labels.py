"""The labels that identify the owner of metrics."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """The run that metrics belong to."""

    job: str
    """The job's name."""
    run: str
    """The address of its output."""
