"""Prepare a job without writing: open its data sets, build its model, assign its rates.

Any mistake in a manifest is found here, before ranks connect or a GPU is in use.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from worker.checkpoint.claim import attempt_numbers, first_whole
from worker.checkpoint.commit import CommitName, list_commits, read_commit_record
from worker.checkpoint.output_owner import owner_of
from worker.checkpoint.publication_record import read_done
from worker.data.epoch_plan import steps_per_epoch
from worker.data.preprocessing import Preprocessing
from worker.errors import ConfigurationError
from worker.job.job import EarlierAttempts, Job
from worker.job.open_data import JobData, naming_field, open_data
from worker.learn.loss import Criterion, class_weights
from worker.manifest import ImageSizes, Manifest
from worker.model.backbone import Backbone, build_backbone, preprocessing_of, sketch_backbone
from worker.model.model_card import preset_beside
from worker.model.rate_groups import RateGroup, assign
from worker.model.regularization import set_dropout, set_stochastic_depth
from worker.model.skeleton import require_train_size
from worker.store import Store, open_store
from worker.store.output_kinds import JOB, require_no_other_kind

log = logging.getLogger(__name__)


def open_job(manifest: Manifest) -> Job:
    """Open the data sets, build the backbone with random weights and assign the rates.

    Raises `ConfigurationError`, which names the invalid field, and any error from the store.
    """
    data = open_data(manifest)
    classes = data.train.index.classes
    preprocessing = _preprocessing_for(manifest, data)
    backbone = build_backbone(
        manifest.model.backbone, len(classes), manifest.train.seed, preprocessing.crop_size
    )
    groups, criterion = settle_model(manifest, data, backbone)
    with naming_field("output"):
        output = open_store(manifest.output)
        result = read_done(output)
        earlier = _read_earlier(output)
        commits = _commits_from_newest(output)
    return Job(
        **vars(data),
        manifest=manifest,
        output=output,
        preprocessing=preprocessing,
        backbone=backbone,
        groups=groups,
        criterion=criterion,
        result=result,
        commits=commits,
        earlier=earlier,
    )


def check_settings(manifest: Manifest, data: JobData) -> None:
    """Check everything that `open_job` checks, without building the model or reading the output.

    Args:
        manifest: The manifest.
        data: Its data sets, or those of a manifest with the same `data` section.

    Raises:
        ConfigurationError: If a setting is not valid; names it.
    """
    preprocessing = _preprocessing_for(manifest, data)
    settle_model(manifest, data, sketch_backbone(manifest.model.backbone, preprocessing.crop_size))


def _preprocessing_for(manifest: Manifest, data: JobData) -> Preprocessing:
    name = manifest.model.backbone
    with naming_field("model.weights"):
        own = preset_beside(manifest.model.pretrained)
    # A model card records how the weights were trained, so it takes precedence over the preset.
    preset = own or preprocessing_of(name, manifest.model.weights)
    sizes = manifest.data.image_size
    size = sizes.evaluate if isinstance(sizes, ImageSizes) else sizes
    preset = preset.at(size) if size else preset
    if isinstance(sizes, ImageSizes):
        require_train_size(name, preset.crop_size, sizes.train)
    return replace(preset, depth=data.train.index.depth or 16)


def settle_model(
    manifest: Manifest, data: JobData, backbone: Backbone
) -> tuple[tuple[RateGroup, ...], Criterion]:
    """Apply the settings to a backbone, and return its rate groups and its loss.

    Args:
        manifest: The manifest.
        data: Its data sets.
        backbone: The backbone; its dropout and stochastic depth are set.

    Raises:
        ConfigurationError: If a setting is not valid; names it.
    """
    name, train = backbone.name, manifest.train
    if manifest.model.dropout is not None:
        set_dropout(name, backbone.model, manifest.model.dropout)
    if manifest.model.stochastic_depth is not None:
        set_stochastic_depth(name, backbone.model, manifest.model.stochastic_depth)
    steps = steps_per_epoch(data.samples_per_epoch, train.batch_size)
    groups = assign(backbone.layout, manifest.optimizer, steps)
    if train.cache_features:
        _require_cacheable(backbone)
    if manifest.final.blend:
        _require_release(groups, steps * train.epochs)
    criterion = Criterion(
        train.label_smoothing,
        # The counts are passed as a function, since only balanced weights need them.
        class_weights(train, data.train.index.classes, data.class_counts),
        backbone.auxiliary_weight,
    )
    return groups, criterion


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


def _read_earlier(output: Store) -> EarlierAttempts | None:
    numbers = attempt_numbers(output)
    owner = owner_of(output, numbers)
    if owner is None:
        require_no_other_kind(output, JOB, "set a different output")
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
