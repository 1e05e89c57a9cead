"""The command line; the only place that turns errors into exit codes.

Commands import what they need when they run: neither `--help` nor a stop signal waits for torch.
"""

from worker.cli import datasets, objects, reference, runs, training
from worker.cli.group import main

__all__ = ["datasets", "main", "objects", "reference", "runs", "training"]
