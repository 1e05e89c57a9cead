"""The command line, and the edge where errors become exit codes."""

from worker.cli import datasets, objects, reference, runs, training
from worker.cli.group import main

__all__ = ["datasets", "main", "objects", "reference", "runs", "training"]
