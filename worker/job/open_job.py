"""Prepare a job without writing: open its data sets, build its model, assign its rates.

Any mistake in a manifest is found here, before ranks connect or a GPU is in use.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from torch import nn

from worker.checkpoint.claim import attempt_numbers, first_whole
from worker.checkpoint.commit import CommitName, list_commits, read_commit_record
from worker.checkpoint.output_owner import owner_of
from worker.checkpoint.publication_record import read_done
from worker.data.epoch_plan import Ids, steps_per_epoch
from worker.data.index import parse_address, read_index
from worker.data.multiplicity import Multiplicities
from worker.data.sample_table import read_table
from worker.errors import ConfigurationError
from worker.job.dataset import Dataset
from worker.job.job import EarlierAttempts, Job
from worker.job.sampling import (
    held_out_of,
    open_multiplicities,
    require_known_keys,
    sampling_of,
)
from worker.learn.loss import Criterion, class_weights
from worker.manifest import ImageSizes, Manifest
from worker.model.backbone import Backbone, build_backbone, preprocessing_of
from worker.model.model_card import preset_beside
from worker.model.rate_groups import RateGroup, assign
from worker.model.regularization import set_dropout, set_stochastic_depth
from worker.model.skeleton import require_train_size
from worker.store import Store, open_store

log = logging.getLogger(__name__)


def open_job(manifest: Manifest) -> Job:
    """Open the data sets, build the backbone with random weights and assign the rates.

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
    name = manifest.model.backbone
    with _naming("model.weights"):
        own = preset_beside(manifest.model.pretrained)
    # A model card records how the weights were trained, so it takes precedence over the preset.
    preset = own or preprocessing_of(name, manifest.model.weights)
    sizes = manifest.data.image_size
    size = sizes.evaluate if isinstance(sizes, ImageSizes) else sizes
    preprocessing = replace(preset.at(size) if size else preset, depth=train.index.depth or 16)
    if isinstance(sizes, ImageSizes):
        require_train_size(name, preprocessing.crop_size, sizes.train)
    backbone = build_backbone(name, len(classes), manifest.train.seed, preprocessing.crop_size)
    samples = multiplicities.per_epoch if multiplicities else train.samples
    if manifest.model.dropout is not None:
        set_dropout(name, backbone.model, manifest.model.dropout)
    if manifest.model.stochastic_depth is not None:
        set_stochastic_depth(name, backbone.model, manifest.model.stochastic_depth)
    steps = steps_per_epoch(samples, manifest.train.batch_size)
    groups = assign(backbone.layout, manifest.optimizer, steps)
    if manifest.train.cache_features:
        _require_cacheable(backbone)
    if manifest.final.blend:
        _require_release(groups, steps * manifest.train.epochs)
    criterion = Criterion(
        manifest.train.label_smoothing,
        # The counts are passed as a function, since only balanced weights need them.
        class_weights(manifest.train, classes, lambda: _class_counts(train, multiplicities)),
        backbone.auxiliary_weight,
    )
    with _naming("output"):
        output = open_store(manifest.output)
        result = read_done(output)
        earlier = _read_earlier(output)
        commits = _commits_from_newest(output)
    return Job(
        manifest=manifest,
        output=output,
        train=train,
        val=val,
        test=test,
        sampling=sampling,
        multiplicities=multiplicities,
        preprocessing=preprocessing,
        backbone=backbone,
        groups=groups,
        criterion=criterion,
        result=result,
        commits=commits,
        earlier=earlier,
    )


def _require_cacheable(backbone: Backbone) -> None:
    """Raise `ConfigurationError` unless the head can be trained on its inputs alone."""
    if len(backbone.heads) > 1 or not isinstance(
        backbone.model.get_submodule(backbone.head), nn.Linear
    ):
        raise ConfigurationError(
            f"train.cache_features: {backbone.name} has a convolutional or an auxiliary head; "
            "remove it"
        )


def _require_release(groups: Iterable[RateGroup], total_steps: int) -> None:
    """Raise `ConfigurationError` unless a group is released in the course of the job."""
    if not any(group.release and group.release < total_steps for group in groups):
        raise ConfigurationError(
            "final.blend: no group is released in the course of the job, so there are no weights "
            "to blend with; give the backbone `freeze: {epochs: 1}`"
        )


def _class_counts(train: Dataset, multiplicities: Multiplicities | None) -> Ids:
    """Return how many images of each class an epoch trains on."""
    if multiplicities:
        return multiplicities.class_places
    labels = read_table(train.store, train.index)["label"]
    return np.bincount(labels, minlength=len(train.index.classes))


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
    with _naming(field):
        address = parse_address(uri)
        return Dataset(address.store, read_index(address))


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Prefix configuration errors with the manifest field that they concern."""
    try:
        yield
    except ConfigurationError as error:
        raise type(error)(f"{field}: {error}") from None


def _read_earlier(output: Store) -> EarlierAttempts | None:
    numbers = attempt_numbers(output)
    owner = owner_of(output, numbers)
    if owner is None:
        if numbers:
            log.warning("%s: its owner cannot be determined, so this job takes it over", output.uri)
        return None
    newest = first_whole(output, numbers[::-1])
    return EarlierAttempts(owner, dict(newest.manifest) if newest else {})


def _commits_from_newest(output: Store) -> tuple[CommitName, ...]:
    """Return the commits, newest first, starting with the newest that has a valid record."""
    commits = list_commits(output)
    while commits and not read_commit_record(output, commits[0]):
        del commits[0]
    return tuple(commits)


def _short(classes: tuple[str, ...]) -> str:
    return f"({', '.join(classes[:4])}{', …' if len(classes) > 4 else ''})"
