"""The labels that identify the owner of metrics."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """The job's name and its run, the address of its output."""

    job: str
    run: str
