"""The job manifest: sections, defaults and what is wrong with one.

Strict: unknown keys and wrong types are refused, and every complaint names the field's path and
the remedy. What depends on the place (endpoint, credentials, ranks, scratch) is environment and
has no key here.
"""

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
