"""The command line, where errors become exit codes.

Commands import what they need when they run, so neither `--help` nor a stop signal waits for torch.
"""

from worker.cli import datasets, models, objects, pack, reference, runs, training
from worker.cli.group import main

__all__ = ["datasets", "main", "models", "objects", "pack", "reference", "runs", "training"]
