"""The command line, where errors become exit codes.

Commands import what they need when they run, so neither `--help` nor a stop signal waits for torch.
"""

from worker.cli import datasets, objects, pack, reference, runs, training
from worker.cli.group import main

__all__ = ["datasets", "main", "objects", "pack", "reference", "runs", "training"]
