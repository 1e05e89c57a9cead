"""A torchvision backbone with a head for the job's classes."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from worker.data.preprocessing import Preprocessing
from worker.model.rate_groups import Block, Layout
from worker.model.skeleton import (
    IMAGENET_CLASSES,
    construct,
    find_blocks,
    find_heads,
    is_auxiliary,
    require_known,
    require_size,
    skeleton,
)

# Weight of each auxiliary classifier's loss: Szegedy et al., 2014 (section 5) and torchvision's
# recipe for Inception v3, whose paper states none.
_AUXILIARY_WEIGHTS = {"googlenet": 0.3, "inception_v3": 0.4}

# Parameters other than norms and biases that torchvision's own recipes exempt from weight decay,
# and the temperature of Swin v2's attention.
_UNDECAYED = (
    *("class_token", "pos_embedding", "relative_position_bias_table", "layer_scale"),
    "logit_scale",
)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A classifier with new heads."""

    name: str
    """The name of the torchvision model."""
    model: nn.Module
    """The model."""
    heads: tuple[str, ...]
    """Dotted names of the replaced layers, with the main head last."""
    image_size: int
    """Side of the images, in pixels."""

    @property
    def head(self) -> str:
        """Return the name of the layer that produces the predictions."""
        return self.heads[-1]

    @property
    def auxiliary_weight(self) -> float:
        """Return the weight of each auxiliary classifier's loss; 0 if there is none."""
        return _AUXILIARY_WEIGHTS.get(self.name, 0.0)

    @property
    def layout(self) -> Layout:
        """Return the layout of the parameters, for the rate groups."""
        return _layout(self.model, self.heads)


def build_backbone(name: str, classes: int, seed: int, image_size: int) -> Backbone:
    """Build a torchvision model with random weights and new heads.

    A new head consists of the first rows of the one that torchvision's constructor creates for
    ImageNet, so it is initialized as usual for the model family. (With few classes, the constructor
    would scale up the head weights of some families, EfficientNet's 22-fold for 2 classes.)

    Args:
        name: The name in torchvision.
        classes: The number of classes.
        seed: Seed for all weights.
        image_size: Side of the images, in pixels.

    Returns:
        The model and its structure.

    Raises:
        ConfigurationError: For an unknown name, or for images too small to train on.
    """
    require_known(name)
    require_size(name, image_size, preprocessing_of(name).crop_size)
    # Look for heads in the skeleton, as they are recognized by ImageNet's number of classes.
    heads = find_heads(skeleton(name, image_size))
    torch.manual_seed(seed)
    model = construct(name, image_size, max(classes, IMAGENET_CLASSES))
    for path in heads:
        layer = model.get_submodule(path)
        with torch.no_grad():
            for key, rows in list(layer.named_parameters()):
                layer.register_parameter(key, nn.Parameter(rows[:classes].clone()))
        setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", classes)
    return Backbone(name=name, model=model, heads=heads, image_size=image_size)


def sketch_backbone(name: str, image_size: int) -> Backbone:
    """Return a backbone without memory for its weights, and with ImageNet's classes.

    Raises `ConfigurationError` for an unknown name, or for images too small to train on.
    """
    require_known(name)
    require_size(name, image_size, preprocessing_of(name).crop_size)
    model = copy.deepcopy(skeleton(name, image_size))  # the caller may change its settings
    return Backbone(name=name, model=model, heads=find_heads(model), image_size=image_size)


def preprocessing_of(name: str, weights: str = "none") -> Preprocessing:
    """Return the preprocessing of torchvision's `weights`, or of the default weights if unknown."""
    require_known(name)
    known = models.get_model_weights(name)
    preset = known.__members__.get(weights, known.DEFAULT).transforms()
    return Preprocessing(
        crop_size=preset.crop_size[0],
        resize_size=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=InterpolationMode(preset.interpolation),
    )


def layout_of(name: str, image_size: int) -> Layout:
    """Return the layout of a model with its ImageNet head, without building it."""
    model = skeleton(name, image_size)
    return _layout(model, find_heads(model))


def logits_of(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """Return a model's logits and those of its auxiliary classifiers, float32 [N, classes]."""
    if isinstance(outputs, Tensor):
        return outputs.float(), []
    main, *others = outputs
    return main.float(), [other.float() for other in others]


def _layout(model: nn.Module, heads: tuple[str, ...]) -> Layout:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def within(paths: tuple[str, ...]) -> frozenset[str]:
        # With the dot, or else `features.1` would also include `features.10`.
        prefixes = tuple(f"{path}." for path in paths)
        return frozenset(name for name in shapes if name.startswith(prefixes))

    head = within(heads)
    blocks = [
        Block("+".join(p for p in paths if not is_auxiliary(p)), within(paths) - head)
        for paths in find_blocks(model, heads)
    ]
    # Parameters outside all modules, such as ViT's class token, join the first block.
    loose = frozenset(shapes).difference(head, *(block.parameters for block in blocks))
    blocks[0] = Block(blocks[0].name, blocks[0].parameters | loose)
    return Layout(
        sizes={name: shape.numel() for name, shape in shapes.items()},
        blocks=(*blocks, Block("head", head)),
        undecayed=frozenset(
            name
            for name, shape in shapes.items()
            # Norms and biases are those with one dimension.
            if len(shape) < 2 or name.rpartition(".")[2] in _UNDECAYED
        ),
    )
