"""A job made ready: data sets opened, model built, rates assigned; nothing is written yet.

Everything that can be wrong with a manifest is found here, before ranks meet or a GPU is held.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from worker.checkpoint.claim import Identity, attempt_numbers, first_whole
from worker.checkpoint.commit import CommitName, list_commits, read_commit, read_commit_record
from worker.checkpoint.output_owner import owner_of
from worker.checkpoint.publication_record import Done, read_done
from worker.data.decode_image import ImageSpec
from worker.data.epoch_plan import EpochPlan, default_lanes, steps_per_epoch
from worker.data.index import Index, parse_address, read_index
from worker.data.labels import read_labels
from worker.data.preprocessing import Preprocessing
from worker.errors import ConfigurationError
from worker.job.manifest_changes import Change, changes_between, flat
from worker.learn.loss import Criterion, class_weights
from worker.manifest import Manifest
from worker.model.backbone import Backbone, build_backbone, preprocessing_of
from worker.model.model_card import preset_beside
from worker.model.rate_groups import RateGroup, assign
from worker.model.schedule import Factor, factor_at, peaks
from worker.store import Store, open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Shards and their index."""

    store: Store
    """Where the shards are."""
    index: Index
    """What is in them."""


@dataclass(frozen=True)
class EarlierAttempts:
    """The traces of earlier attempts."""

    identity: Identity
    """Whose output it is."""
    manifest: dict[str, Any]
    """The newest attempt's manifest; empty if its record is damaged."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A manifest with everything that it names opened and built."""

    manifest: Manifest
    """The manifest."""
    output: Store
    """Its output."""
    train: Dataset
    """The training set."""
    val: Dataset | None
    """The validation set; None if there is none."""
    preprocessing: Preprocessing
    """How images are prepared."""
    backbone: Backbone
    """The model."""
    groups: tuple[RateGroup, ...]
    """Its rate groups."""
    criterion: Criterion
    """The loss."""
    result: Done | None
    """What has been published of it, of however many epochs."""
    commits: tuple[CommitName, ...]
    """The checkpoints that earlier attempts have left, newest first; any may be damaged."""
    earlier: EarlierAttempts | None
    """What earlier attempts have left; None for a first one."""

    @property
    def done(self) -> Done | None:
        """The result, if it is of as many epochs as the manifest asks for."""
        enough = self.result and self.result.epochs >= self.manifest.train.epochs
        return self.result if enough else None

    @property
    def image_spec(self) -> ImageSpec:
        """Settings of decoding."""
        return ImageSpec(self.manifest.data.max_pixels, self.preprocessing.depth)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.train.index.samples, self.manifest.train.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.manifest.train.epochs

    @property
    def full_batch(self) -> int:
        """Images in a batch that is not the last one of an epoch."""
        return min(self.manifest.train.batch_size, self.train.index.samples)

    @property
    def last_batch(self) -> int:
        """Images in the last batch of an epoch."""
        before = (self.steps_per_epoch - 1) * self.manifest.train.batch_size
        return self.train.index.samples - before

    def factor(self, step: int) -> Factor:
        """Return the factor on all full rates at a step, counted from 0."""
        schedule = self.manifest.optimizer.schedule
        return factor_at(step, schedule, self.total_steps, self.steps_per_epoch)

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate of each group at a step; 0 while it is frozen."""
        factor = self.factor(step).rate
        return {
            group.name: group.lr * factor if group.trains_at(step) else 0.0 for group in self.groups
        }

    def peak(self, group: RateGroup) -> float:
        """The highest rate that a group is ever trained at."""
        if group.release is None or group.release >= self.total_steps:
            return 0.0
        schedule = self.manifest.optimizer.schedule
        tops = peaks(schedule, self.total_steps, self.steps_per_epoch)
        steps = {min(max(top, group.release), self.total_steps - 1) for top in tops}
        return max(group.lr * self.factor(step).rate for step in steps)

    def plan(self, epoch: int) -> EpochPlan:
        """The batches of one epoch, counted from 0."""
        train = self.manifest.train
        counts, window = self.train.index.counts, self.manifest.data.shuffle.window
        return EpochPlan(
            counts, train.batch_size, train.seed, epoch=epoch, lanes=self.lanes, window=window
        )

    @property
    def lanes(self) -> int:
        """Lanes of the plan, see `data.shuffle`."""
        return self.manifest.data.shuffle.lanes or default_lanes(self.manifest.train.batch_size)

    @property
    def identity(self) -> dict[str, str]:
        """Return what must not change between the attempts of one job, by manifest field."""
        manifest = self.manifest
        return {
            "job": manifest.job,
            "data.train": self.train.index.identity,
            "data.image_size": str(self.preprocessing.crop_size),
            "preprocessing": str(self.preprocessing),
            "model.backbone": manifest.model.backbone,
            "train.batch_size": str(manifest.train.batch_size),
            "train.seed": str(manifest.train.seed),
            # The number of lanes follows from the batch size where it is not given.
            "data.shuffle": f"{self.lanes} lanes, window {manifest.data.shuffle.window}",
        }

    @property
    def changes(self) -> list[Change]:
        """Settings that differ from those of the attempt before this one."""
        if self.earlier is None:
            return []
        now = flat(self.manifest.model_dump(mode="json"))
        return changes_between(
            flat(self.earlier.manifest),
            now,
            self.earlier.identity,
            self.identity,
            resumes=bool(self.commits),
        )


def open_job(manifest: Manifest) -> Job:
    """Open the data sets, build the backbone at random weights and assign the rates.

    Raises `ConfigurationError` naming the field that is wrong, and what the store raises.
    """
    train = open_dataset("data.train", manifest.data.train)
    val = open_dataset("data.val", manifest.data.val) if manifest.data.val else None
    classes = train.index.classes
    if val and val.index.classes != classes:
        raise ConfigurationError(
            f"data.val: its classes {_short(val.index.classes)} are not those of data.train, "
            f"{_short(classes)}; pack both from one folder, or index both with the same --classes"
        )
    if val and val.store.uri == train.store.uri:
        trained = {shard.name for shard in train.index.shards}
        shared = [shard.name for shard in val.index.shards if shard.name in trained]
        if shared:
            log.warning("data.val: %s is in data.train too; accuracy will flatter", shared[0])
    if len(classes) < 2:
        raise ConfigurationError(f"data.train: has the class {classes[0]!r} only; two are needed")
    name = manifest.model.backbone
    with _naming("model.weights"):
        own = preset_beside(manifest.model.pretrained)
    preset = own or preprocessing_of(name, manifest.model.weights)
    size = manifest.data.image_size
    preprocessing = replace(preset.at(size) if size else preset, depth=train.index.depth or 16)
    backbone = build_backbone(name, len(classes), manifest.train.seed, preprocessing.crop_size)
    steps = steps_per_epoch(train.index.samples, manifest.train.batch_size)
    groups = assign(backbone.layout, manifest.optimizer, steps)
    criterion = Criterion(
        manifest.train.label_smoothing,
        class_weights(manifest.train, classes, lambda: read_labels(train.store, train.index)),
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
        preprocessing=preprocessing,
        backbone=backbone,
        groups=groups,
        criterion=criterion,
        result=result,
        commits=commits,
        earlier=earlier,
    )


def require_same_experiment(job: Job) -> None:
    """Raise `ConfigurationError` where the output holds another experiment, or one beyond this."""
    if job.earlier:
        require_same_identity(job, job.earlier.identity)
    if not job.done:
        _require_reachable(job)
        if not job.commits:
            require_no_result(job, job.result)


def require_same_identity(job: Job, owner: Identity) -> None:
    """Raise `ConfigurationError` unless the output, whose identity is `owner`, is this job's."""
    differences = [
        f"{field}: {value} here, but {owner.get(field)} in the job whose output it is"
        for field, value in job.identity.items()
        if owner.get(field, value) != value
    ]
    if differences:
        raise ConfigurationError(
            f"output: {job.output.uri} belongs to another job ({'; '.join(differences)}); "
            "give this one an output of its own"
        )


def _require_reachable(job: Job) -> None:
    """Raise `ConfigurationError` if a whole checkpoint lies beyond the last step."""
    for name in job.commits:
        if name.step <= job.total_steps:
            return
        if read_commit(job.output, name):  # and not just an object that is named like one
            raise ConfigurationError(
                f"train.epochs: {job.manifest.train.epochs} are {job.total_steps} steps, but "
                f"{name.step} are done; ask for more or use another output"
            )


def require_no_result(job: Job, result: Done | None) -> None:
    """Raise `ConfigurationError` if training would start anew where a result is."""
    if result:
        raise ConfigurationError(
            f"train.epochs: {result.epochs} are done, but no intact checkpoint of them is left to "
            f"resume from; use a new output with model.weights: {job.output.uri}final/"
            "model.safetensors"
        )


def manifest_digest(manifest: Manifest) -> str:
    """Sha256 of the resolved manifest."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()


def open_dataset(field: str, uri: str) -> Dataset:
    """The shards at an address that the manifest's `field` gives, and their index."""
    with _naming(field):
        address = parse_address(uri)
        return Dataset(address.store, read_index(address))


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Put the manifest's field in front of what is wrong with the address that it gives."""
    try:
        yield
    except ConfigurationError as error:
        raise type(error)(f"{field}: {error}") from None


def _read_earlier(output: Store) -> EarlierAttempts | None:
    numbers = attempt_numbers(output)
    owner = owner_of(output, numbers)
    if owner is None:
        if numbers:
            log.warning("%s: nothing there tells whose it is, so it is this job's", output.uri)
        return None
    newest = first_whole(output, numbers[::-1])
    return EarlierAttempts(owner, dict(newest.manifest) if newest else {})


def require_own_output(job: Job) -> None:
    """Raise `ConfigurationError` if the output belongs to another job by now."""
    owner = owner_of(job.output)
    if owner:
        require_same_identity(job, owner)


def _commits_from_newest(output: Store) -> tuple[CommitName, ...]:
    """Return the commits from the newest one that is more than an object of such a name."""
    commits = list_commits(output)
    while commits and not read_commit_record(output, commits[0]):
        del commits[0]
    return tuple(commits)


def _short(classes: tuple[str, ...]) -> str:
    return f"({', '.join(classes[:4])}{', …' if len(classes) > 4 else ''})"
