"""The command line, by the kind of what a command is about."""

from worker.cli import datasets, objects, reference, runs, training
from worker.cli.group import main

__all__ = ["datasets", "main", "objects", "reference", "runs", "training"]
