"""A torchvision backbone with a head for the job's classes."""

import difflib
from dataclasses import dataclass

import torch
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from worker.data.preprocessing import Preprocessing
from worker.errors import ConfigurationError

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Backbone:
    """A classifier and the dotted name of the module that is its replaced head."""

    name: str
    model: nn.Module
    head: str

    @property
    def head_parameters(self) -> frozenset[str]:
        """Names of the head's parameters."""
        return frozenset(
            name for name, _ in self.model.named_parameters() if name.startswith(f"{self.head}.")
        )


def build_backbone(name: str, classes: int, seed: int) -> Backbone:
    """The torchvision model `name` at random weights, its head replaced by one for `classes`.

    The new head is the first rows of the one that torchvision's constructor makes for ImageNet, so
    that it is initialised as the family does. (Asked for few classes, the constructor would scale
    some families' heads up: EfficientNet's to 22 times the weights at 2 classes.)
    Raises `ConfigurationError` for an unknown name or one whose head is not one last Linear.
    """
    _require_known(name)
    torch.manual_seed(seed)
    head = _find_head(name)
    model = models.get_model(name, weights=None, num_classes=max(classes, _IMAGENET_CLASSES))
    old = model.get_submodule(head)
    new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    with torch.no_grad():
        for parameter, rows in zip(new.parameters(), old.parameters(), strict=True):
            parameter.copy_(rows[:classes])
    model.set_submodule(head, new)
    return Backbone(name, model, head)


def preprocessing_of(name: str, image_size: int | None) -> Preprocessing:
    """The preset of the backbone's default weights, its sizes scaled to `image_size` if given."""
    _require_known(name)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    size = image_size or crop
    return Preprocessing(
        crop_size=size,
        resize_size=round(size * resize / crop),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=InterpolationMode(preset.interpolation),
    )


def _require_known(name: str) -> None:
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "see torchvision.models"
        raise ConfigurationError(f"model.backbone: no model {name!r}; {remedy}")


def _find_head(name: str) -> str:
    """The last Linear with one output per class, looked up on a model that holds no memory."""
    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    heads = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == _IMAGENET_CLASSES
    ]
    if len(heads) != 1:
        raise ConfigurationError(
            f"model.backbone: {name} has {len(heads)} linear heads; "
            "only backbones that end in a single one are supported"
        )
    return heads[0]
