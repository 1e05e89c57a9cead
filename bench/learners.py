"""Learners and engines of one rank in the test's own process."""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from worker.data.loader import Batch
from worker.learn.loss import Criterion
from worker.learn.training_step import Engine
from worker.manifest import Manifest, parse_manifest
from worker.model.backbone import Backbone, preprocessing_of
from worker.model.learner import Learner, build_learner
from worker.model.rate_groups import RateGroup, assign
from worker.ranks.rank import Rank

ALONE = Rank(
    rank=0, world_size=1, local_rank=0, local_world_size=1, master_addr="localhost", master_port=0
)
CPU = torch.device("cpu")


def manifest_of(groups: list[dict[str, Any]], train: Any = None, **optimizer: Any) -> Manifest:
    """A manifest in which only the settings of optimizer and training matter."""
    optimizer = {"lr": 1e-3, "weight_decay": 1e-5, "groups": groups, **optimizer}
    data = {
        "version": 1,
        "job": "test",
        "output": "/nowhere/",
        "data": {"train": "/nowhere/", "val": "/nowhere/"},
        "model": {"backbone": "resnet18"},
        "optimizer": optimizer,
        "train": {"epochs": 2, "batch_size": 4, **(train or {})},
    }
    return parse_manifest(repr(data).replace("None", "null").replace("True", "true"), "test")


def learner_of(backbone: Backbone, manifest: Manifest, steps_per_epoch: int = 4) -> Learner:
    """The learner of a job with this backbone."""
    groups = assign(backbone.layout, manifest.optimizer, steps_per_epoch)
    return build_learner(backbone.model, groups, manifest, CPU)


def engine_of(backbone: Backbone, learner: Learner, manifest: Manifest) -> Engine:
    """The engine of a job of one rank; needs the fixture `alone`."""
    preprocessing = preprocessing_of(backbone.name).at(backbone.image_size)
    criterion = Criterion(
        manifest.train.label_smoothing, auxiliary_weight=backbone.auxiliary_weight
    )
    clip_norm = manifest.optimizer.clip_norm
    full = manifest.train.batch_size
    return Engine(
        learner,
        preprocessing,
        criterion,
        train=manifest.train,
        clip_norm=clip_norm,
        rank=ALONE,
        full_batch=full,
    )


def batch_of(images: int, side: int, classes: int, seed: int = 0) -> Batch:
    """Noise with labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(images) % classes
    return Batch(
        images=pixels, labels=labels, ids=labels.numpy(), valid=torch.ones(images, dtype=torch.bool)
    )


def rate_group(name: str, lr: float, *parameters: str, **changes: Any) -> RateGroup:
    """A group that is trained from the start."""
    settings: dict[str, Any] = {"weight_decay": 0.0, "release": 0, "batch_norm": True, **changes}
    return RateGroup(name=name, match=(name,), lr=lr, parameters=parameters, **settings)


def everything(model: nn.Module, lr: float) -> tuple[RateGroup, ...]:
    """Put all parameters of a model into one group."""
    return (rate_group("*", lr, *(name for name, _ in model.named_parameters())),)


class Waits(TorchDispatchMode):
    """Notes what would have the host wait for a GPU: numbers read, and numbers put there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in ("_local_scalar_dense", "nonzero", "equal", "lift_fresh", "masked_select"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))
