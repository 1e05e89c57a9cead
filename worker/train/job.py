"""A job made ready: data sets opened, model built, rates assigned; nothing is written yet.

Everything that can be wrong with a manifest is found here, before ranks meet or a GPU is held.
"""

import hashlib
from dataclasses import dataclass

from worker.data.decode import Preprocessing
from worker.data.index import Index, read_index
from worker.data.plan import EpochPlan
from worker.errors import ConfigurationError
from worker.manifest import Manifest
from worker.model.backbone import Backbone, build_backbone, preprocessing_of
from worker.model.groups import RateGroup, assign
from worker.store import Store, open_store


@dataclass(frozen=True)
class Dataset:
    """Shards and what is known of them."""

    store: Store
    index: Index


@dataclass(frozen=True)
class Job:
    """What a manifest means."""

    manifest: Manifest
    output: Store
    train: Dataset
    val: Dataset | None
    preprocessing: Preprocessing
    backbone: Backbone
    groups: tuple[RateGroup, ...]

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.train.index.samples // self.manifest.train.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.manifest.train.epochs

    def plan(self, epoch: int) -> EpochPlan:
        """The batches of one epoch, counted from 0."""
        train = self.manifest.train
        return EpochPlan(self.train.index.counts, train.batch_size, train.seed, epoch)

    @property
    def identity(self) -> dict[str, str]:
        """What must not change between the attempts of one job, by manifest field."""
        manifest = self.manifest
        return {
            "job": manifest.job,
            "data.train": self.train.index.digest,
            "data.image_size": str(self.preprocessing.crop_size),
            "model.backbone": manifest.model.backbone,
            "train.batch_size": str(manifest.train.batch_size),
            "train.seed": str(manifest.train.seed),
        }

    def require_identity(self, kept: dict[str, str], where: str) -> None:
        """Raise `ConfigurationError` where `kept`, found at `where`, is of another experiment."""
        for field, value in self.identity.items():
            if kept.get(field) != value:
                raise ConfigurationError(
                    f"{field}: not what {where} was made with; "
                    "give the new experiment an output of its own"
                )


def open_job(manifest: Manifest) -> Job:
    """Open the data sets, build the backbone at random weights and assign the rates.

    Raises `ConfigurationError` naming the field that is wrong, and what the store raises.
    """
    train = _open("data.train", manifest.data.train)
    val = _open("data.val", manifest.data.val) if manifest.data.val else None
    classes = train.index.classes
    if val and val.index.classes != classes:
        raise ConfigurationError(
            f"data.val: its classes {_short(val.index.classes)} are not those of data.train, "
            f"{_short(classes)}; pack both from one folder"
        )
    if len(classes) < 2:
        raise ConfigurationError(f"data.train: has the class {classes[0]!r} only; two are needed")
    name = manifest.model.backbone
    preprocessing = preprocessing_of(name, manifest.data.image_size)
    backbone = build_backbone(name, len(classes), manifest.train.seed)
    names = [parameter for parameter, _ in backbone.model.named_parameters()]
    groups = assign(names, backbone.head_parameters, manifest.optimizer)
    output = open_store(manifest.output)
    return Job(manifest, output, train, val, preprocessing, backbone, tuple(groups))


def manifest_digest(manifest: Manifest) -> str:
    """Sha256 of the resolved manifest."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()


def _open(field: str, uri: str) -> Dataset:
    store = open_store(uri)
    try:
        return Dataset(store, read_index(store))
    except ConfigurationError as error:
        raise type(error)(f"{field}: {error}") from None


def _short(classes: tuple[str, ...]) -> str:
    return f"({', '.join(classes[:4])}{', …' if len(classes) > 4 else ''})"
