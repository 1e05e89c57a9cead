"""The data sets of a job: opened, divided into folds, and compared with each other."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from worker.data.epoch_plan import Ids
from worker.data.index import parse_address, read_index
from worker.data.multiplicity import Multiplicities, Sampling
from worker.data.sample_table import read_table
from worker.errors import ConfigurationError
from worker.job.dataset import Dataset
from worker.job.sampling import (
    held_out_of,
    open_multiplicities,
    require_known_keys,
    sampling_of,
)
from worker.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobData:
    """The data sets of a job, and how often it sees their samples."""

    train: Dataset
    """The training set."""
    val: Dataset | None
    """The validation set; None if there is none."""
    test: Dataset | None
    """The test set; None if there is none."""
    sampling: Sampling
    """The settings for how often samples are seen."""
    multiplicities: Multiplicities | None
    """How often each epoch sees each training sample; None if it is always once."""

    @property
    def samples_per_epoch(self) -> int:
        """The number of images that an epoch trains on, each copy counted."""
        return self.multiplicities.per_epoch if self.multiplicities else self.train.samples

    def class_counts(self) -> Ids:
        """Return how many images of each class an epoch trains on."""
        if self.multiplicities:
            return self.multiplicities.class_places
        labels = read_table(self.train.store, self.train.index)["label"]
        return np.bincount(labels, minlength=len(self.train.index.classes))


def open_data(manifest: Manifest) -> JobData:
    """Open the data sets of a job.

    Raises `ConfigurationError`, which names the invalid field, and any error from the store.
    """
    train = open_dataset("data.train", manifest.data.train)
    classes = train.index.classes
    val = _open_evaluated("data.val", manifest.data.val, train)
    test = _open_evaluated("data.test", manifest.data.test, train)
    sampling = sampling_of(manifest.data)
    if manifest.data.without:
        require_known_keys(train, sampling, manifest.data.without)
    if sampling.fold:
        val = held_out_of(train, sampling)
    multiplicities = open_multiplicities(train, sampling, manifest.train.seed)
    if val and test:
        _warn_if_shared("data.test", test, "data.val", val)
    if len(classes) < 2:
        raise ConfigurationError(
            f"data.train: has only the class {classes[0]!r}; at least two are needed"
        )
    return JobData(
        train=train, val=val, test=test, sampling=sampling, multiplicities=multiplicities
    )


def _open_evaluated(field: str, uri: str | None, train: Dataset) -> Dataset | None:
    """Open a data set to evaluate on, whose classes must be those of the training set."""
    if not uri:
        return None
    opened, classes = open_dataset(field, uri), train.index.classes
    if opened.index.classes != classes:
        raise ConfigurationError(
            f"{field}: its classes {_short(opened.index.classes)} differ from those of data.train, "
            f"{_short(classes)}; pack both from one folder, or index both with the same --classes"
        )
    _warn_if_shared(field, opened, "data.train", train)
    return opened


def _warn_if_shared(field: str, dataset: Dataset, other_field: str, other: Dataset) -> None:
    """Warn if two data sets have a shard in common."""
    known = {shard.sha256 for shard in other.index.shards}
    shared = [shard.name for shard in dataset.index.shards if shard.sha256 in known]
    if shared:
        log.warning(
            "%s: %s is in %s too; figures will be optimistic", field, shared[0], other_field
        )


def open_dataset(field: str, uri: str) -> Dataset:
    """Open the data set at the address in the manifest's `field`."""
    with naming_field(field):
        address = parse_address(uri)
        return Dataset(address.store, read_index(address))


@contextmanager
def naming_field(field: str) -> Iterator[None]:
    """Prefix configuration errors with the manifest field that they concern."""
    try:
        yield
    except ConfigurationError as error:
        raise type(error)(f"{field}: {error}") from None


def _short(classes: tuple[str, ...]) -> str:
    return f"({', '.join(classes[:4])}{', …' if len(classes) > 4 else ''})"
