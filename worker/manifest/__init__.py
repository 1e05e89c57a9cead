"""The job manifest: sections, defaults and what is wrong with one."""

from worker.manifest.data import Augment, Data, Jitter, RandAugment, Shuffle
from worker.manifest.job import Checkpoint, Final, Manifest, Record
from worker.manifest.load import check_manifest, load_manifest, parse_manifest
from worker.manifest.training import (
    EarlyStop,
    Freeze,
    Geometric,
    Group,
    Model,
    Optimizer,
    Schedule,
    Span,
    Train,
)

__all__ = [
    "Augment",
    "Checkpoint",
    "Data",
    "EarlyStop",
    "Final",
    "Freeze",
    "Geometric",
    "Group",
    "Jitter",
    "Manifest",
    "Model",
    "Optimizer",
    "RandAugment",
    "Record",
    "Schedule",
    "Shuffle",
    "Span",
    "Train",
    "check_manifest",
    "load_manifest",
    "parse_manifest",
]
