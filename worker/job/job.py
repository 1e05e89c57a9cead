"""A job: its manifest, everything that the manifest names, and the owner of its output."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.checkpoint.claim import Identity
from worker.checkpoint.commit import CommitName, read_commit
from worker.checkpoint.output_owner import owner_of
from worker.checkpoint.publication_record import Done
from worker.data.decode_image import ImageSpec
from worker.data.epoch_plan import EpochPlan, Ids, default_lanes, lay_out, steps_per_epoch
from worker.data.preprocessing import Preprocessing
from worker.errors import ConfigurationError
from worker.job.dataset import Dataset
from worker.job.manifest_changes import Change, changes_between, flat
from worker.job.open_data import JobData
from worker.job.sampling import describe_sampling
from worker.layout import FIND_RATES
from worker.learn.loss import Criterion
from worker.logs import count
from worker.manifest import ImageSizes, Manifest
from worker.model.backbone import Backbone
from worker.model.rate_groups import RateGroup
from worker.model.schedule import Factor, factor_at, peaks
from worker.store import Store


@dataclass(frozen=True)
class EarlierAttempts:
    """Identity and manifest that earlier attempts have left in the output."""

    identity: Identity
    """Identity of the job that owns the output."""
    manifest: dict[str, Any]
    """Manifest in the newest attempt record that is intact; empty if none is."""


@dataclass(frozen=True, kw_only=True)
class Job(JobData):
    """A manifest and everything that it names, opened and built."""

    manifest: Manifest
    """The manifest."""
    output: Store
    """Store that the job writes its output to."""
    preprocessing: Preprocessing
    """Preprocessing of the images."""
    backbone: Backbone
    """The model."""
    groups: tuple[RateGroup, ...]
    """Rate groups of the model's parameters."""
    criterion: Criterion
    """The loss."""
    result: Done | None
    """Published result, of any number of epochs; None if there is none."""
    commits: tuple[CommitName, ...]
    """Checkpoints of earlier attempts, newest first; any of them may be damaged."""
    earlier: EarlierAttempts | None
    """Identity and manifest of earlier attempts; None if there were none."""

    @property
    def done(self) -> Done | None:
        """The result, if it has at least as many epochs as the manifest asks for."""
        enough = self.result and self.result.epochs >= self.manifest.train.epochs
        return self.result if enough else None

    @property
    def datasets(self) -> list[Dataset]:
        """The data sets of the job."""
        return [dataset for dataset in (self.train, self.val, self.test) if dataset]

    @property
    def train_size(self) -> int:
        """Side of the training images, in pixels; that of evaluated ones may be larger."""
        size = self.manifest.data.image_size
        return size.train if isinstance(size, ImageSizes) else self.preprocessing.crop_size

    @property
    def image_spec(self) -> ImageSpec:
        """Settings for decoding images."""
        return ImageSpec(self.manifest.data.max_pixels, self.preprocessing.depth)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.samples_per_epoch, self.manifest.train.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.manifest.train.epochs

    @property
    def full_batch(self) -> int:
        """Images in every batch except the last one of an epoch."""
        return min(self.manifest.train.batch_size, self.samples_per_epoch)

    @property
    def last_batch(self) -> int:
        """Images in the last batch of an epoch."""
        before = (self.steps_per_epoch - 1) * self.manifest.train.batch_size
        return self.samples_per_epoch - before

    def factor(self, step: int) -> Factor:
        """Return the factor that scales all learning rates at a step, counted from 0."""
        schedule = self.manifest.optimizer.schedule
        return factor_at(step, schedule, self.total_steps, self.steps_per_epoch)

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rate of each group at a step; 0 while the group is frozen."""
        factor = self.factor(step).rate
        return {
            group.name: group.lr * factor if group.trains_at(step) else 0.0 for group in self.groups
        }

    def peak(self, group: RateGroup) -> float:
        """Return the highest learning rate at which a group is ever trained."""
        if group.release is None or group.release >= self.total_steps:
            return 0.0
        schedule = self.manifest.optimizer.schedule
        tops = peaks(schedule, self.total_steps, self.steps_per_epoch)
        # The factor may rise until the last top and only falls after it, so the highest rate is at
        # a top, or at the release if that is later.
        steps = {min(max(top, group.release), self.total_steps - 1) for top in tops}
        return max(group.lr * self.factor(step).rate for step in steps)

    @property
    def first_release(self) -> int | None:
        """The step that releases the first group that is frozen before; None if there is none."""
        steps = [group.release for group in self.groups if group.release]
        return min(steps, default=None)

    @property
    def kept_release(self) -> int | None:
        """The step whose checkpoint `final.blend` needs; None if it is not asked for."""
        return self.first_release if self.manifest.final.blend else None

    @property
    def probing_epochs(self) -> int:
        """Epochs at the start in which only the head is trained, on cached features."""
        if not self.manifest.train.cache_features:
            return 0
        head = self.backbone.layout.head
        others = [group for group in self.groups if not head.issuperset(group.parameters)]
        # A group without a release is frozen to the end.
        ends = [self.total_steps if g.release is None else g.release for g in others]
        return min(ends, default=0) // self.steps_per_epoch

    @property
    def training_ids(self) -> Ids:
        """Ids of all samples that the job trains on, in ascending order."""
        if self.multiplicities:
            return np.sort(self.multiplicities.ids)
        return np.arange(self.train.samples)

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch's batches; epochs are counted from 0."""
        train = self.manifest.train
        index, draws = self.train.index, None
        counts = index.counts
        if self.multiplicities:
            counts, draws = lay_out(self.multiplicities.of_epoch(epoch), index.ends)
        return EpochPlan(
            counts,
            train.batch_size,
            train.seed,
            epoch=epoch,
            lanes=self.lanes,
            window=self.manifest.data.shuffle.window,
            draws=draws,
        )

    @property
    def find_rates(self) -> str:
        """The address of the folder for the results of `worker find-rates`."""
        return f"{self.output.uri}{FIND_RATES}"

    @property
    def lanes(self) -> int:
        """Number of lanes that each batch reads from; see `data.shuffle`."""
        return self.manifest.data.shuffle.lanes or default_lanes(self.manifest.train.batch_size)

    @property
    def identity(self) -> dict[str, str]:
        """Settings that must not change between the attempts of a job, by manifest field."""
        manifest = self.manifest
        return {
            "job": manifest.job,
            "data.train": self.train.index.identity,
            "data.sampling": describe_sampling(self.sampling),
            "data.image_size": self._sizes,
            "preprocessing": str(self.preprocessing),
            "model.backbone": manifest.model.backbone,
            "train.batch_size": str(manifest.train.batch_size),
            "train.seed": str(manifest.train.seed),
            "train.metric": manifest.train.metric,  # decides which is the best so far
            # If the number of lanes is not set, it follows from the batch size.
            "data.shuffle": f"{self.lanes} lanes, window {manifest.data.shuffle.window}",
        }

    @property
    def _sizes(self) -> str:
        evaluated = str(self.preprocessing.crop_size)
        same = self.train_size == self.preprocessing.crop_size
        return evaluated if same else f"{self.train_size} in training, else {evaluated}"

    @property
    def changes(self) -> list[Change]:
        """Settings that differ from those of the previous attempt."""
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


def require_same_experiment(job: Job) -> None:
    """Raise `ConfigurationError` if this job cannot continue the experiment in its output."""
    if job.earlier:
        require_same_identity(job, job.earlier.identity)
    if not job.done:
        _require_reachable(job)
        if not job.commits:
            require_no_result(job, job.result)


def require_same_identity(job: Job, owner: Identity) -> None:
    """Raise `ConfigurationError` if `owner`, the owner of the output, is another job."""
    differences = [
        f"{field}: {value} here, but {owner.get(field)} in the job that owns the output"
        for field, value in job.identity.items()
        if owner.get(field, value) != value
    ]
    if owner.get("job", job.manifest.job) != job.manifest.job:
        raise ConfigurationError(
            f"output: {job.output.uri} belongs to another job ({differences[0]}); set a different "
            "output for this one"
        )
    if differences:
        raise ConfigurationError(
            f"output: {job.output.uri} was started with settings that cannot change "
            f"({'; '.join(differences)}); set them back, or set a different output"
        )


def _require_reachable(job: Job) -> None:
    """Raise `ConfigurationError` if an intact checkpoint is beyond the last step."""
    for name in job.commits:
        if name.step <= job.total_steps:
            return
        if read_commit(job.output, name):  # a real commit, not just an object with such a name
            raise ConfigurationError(
                f"train.epochs: {job.manifest.train.epochs} is {job.total_steps} steps, but "
                f"{name.step} are already done; set more epochs or use another output"
            )


def require_no_result(job: Job, result: Done | None) -> None:
    """Raise `ConfigurationError` if training would start over although there is a result."""
    if result:
        raise ConfigurationError(
            f"train.epochs: the job is done with {count(result.epochs, 'epoch')}, but no intact "
            f"checkpoint is left to resume from; use a new output with "
            f"model.weights: {job.output.uri}final/model.safetensors"
        )


def manifest_digest(manifest: Manifest) -> str:
    """Return the SHA-256 digest of the resolved manifest."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()


def require_own_output(job: Job) -> None:
    """Raise `ConfigurationError` if the output now belongs to another job."""
    owner = owner_of(job.output)
    if owner:
        require_same_identity(job, owner)
