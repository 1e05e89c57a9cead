"""The job manifest: its sections, defaults and validation.

Validation is strict: unknown keys and wrong types are refused, and every error names the field's
path and the remedy. Anything that depends on where a job runs (endpoint, credentials, ranks,
scratch) is set in the environment and has no key here.
"""

from worker.manifest.data import Augment, Data, Fold, ImageSizes, Jitter, RandAugment, Shuffle
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
    "Fold",
    "Freeze",
    "Geometric",
    "Group",
    "ImageSizes",
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
