"""Augmentation of decoded images for training; every random draw is keyed by the sample.

Sizes are in pixels. Images stay uint8; batches are converted to float only on the device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from worker.data.augment_policies import Policy, rand_augment, trivial_augment
from worker.data.epoch_plan import Ids, keyed_uniform
from worker.data.loader import Prepare
from worker.data.preprocessing import Preprocessing
from worker.manifest import Augment, Jitter

Box = tuple[int, int, int, int]  # top, left, height, width

_TRIES = 10
_BOX_DRAWS = 4 * _TRIES
_JITTER_DRAWS = 8
_CROP_RATIOS = (3 / 4, 4 / 3)
_ERASE_SCALE, _ERASE_RATIOS = (0.02, 0.33), (0.3, 3.3)  # Zhong et al., "Random erasing", 2017


class Augmentation:
    """Random crop, flip, policy, color jitter and erasing, in that order.

    The draws of a sample depend only on (seed, epoch, sample id), not on the process or the time.

    Args:
        preprocessing: The backbone's preprocessing, which determines the crop size.
        settings: The augmentation section of the manifest.
        seed: The job's seed.
    """

    def __init__(self, preprocessing: Preprocessing, settings: Augment, seed: int) -> None:
        self._preprocessing = preprocessing
        self._settings = settings
        self._seed = seed
        # Erased boxes are filled with the mean, which normalization turns into about zero.
        self._mean = torch.tensor(preprocessing.mean).mul(255).round().to(torch.uint8).view(3, 1, 1)
        self._stages = tuple(self._chosen())
        self._draws = sum(stage.draws for stage in self._stages)

    def prepare_for(self, epoch: int) -> Callable[[Ids], Prepare]:
        """Return a factory for the functions that prepare the images of an epoch's batches."""

        def prepare(ids: Ids) -> Prepare:
            draws = keyed_uniform(self._draws, self._seed, epoch, ids).tolist()
            return lambda place, image, out: self._apply(image, draws[place], out)

        return prepare

    def _chosen(self) -> Iterator["_Stage"]:
        """Yield the stages that the manifest enables, in order."""
        settings, policy = self._settings, _policy(self._settings)
        yield _Stage(_BOX_DRAWS, self._crop)
        yield _Stage(1, lambda image, draws: image.flip(-1) if draws[0] < settings.flip else image)
        if policy:
            yield _Stage(policy.draws, lambda image, draws: policy.apply(image, iter(draws)))
        if settings.jitter:
            amounts = settings.jitter
            yield _Stage(_JITTER_DRAWS, lambda image, draws: jitter(image, amounts, iter(draws)))
        if settings.erasing:
            yield _Stage(1 + _BOX_DRAWS, self._erase)

    def _apply(self, image: Tensor, draws: list[float], out: Tensor) -> None:
        """Augment a uint8 [3, H, W] image into `out`, uint8 [3, S, S], where S is the crop size."""
        used = 0
        for stage in self._stages:
            image = stage.apply(image, draws[used : used + stage.draws])
            used += stage.draws
        out.copy_(image)

    def _crop(self, image: Tensor, draws: Sequence[float]) -> Tensor:
        height, width = image.shape[-2:]
        crop = random_resized_crop(width, height, self._settings.crop_scale, iter(draws))
        return self._preprocessing.resized(image, crop, self._preprocessing.crop_size)

    def _erase(self, image: Tensor, draws: Sequence[float]) -> Tensor:
        chance, *numbers = draws
        side, box = image.shape[-1], None
        if chance < self._settings.erasing:
            box = random_box(
                side, side, scale=_ERASE_SCALE, ratios=_ERASE_RATIOS, draws=iter(numbers)
            )
        if box:
            top, left, h, w = box
            image = image.clone()
            image[:, top : top + h, left : left + w] = self._mean.to(image.device)
        return image


class _Stage(NamedTuple):
    """A stage of the augmentation.

    It always gets as many uniform numbers as it declares, so no stage shifts another's numbers.
    """

    draws: int
    apply: Callable[[Tensor, Sequence[float]], Tensor]


def _policy(settings: Augment) -> Policy | None:
    if settings.randaugment:
        return rand_augment(settings.randaugment.operations, settings.randaugment.magnitude)
    return trivial_augment() if settings.trivialaugment else None


def random_box(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratios: tuple[float, float],
    draws: Iterator[float],
) -> Box | None:
    """Return a box of random area and aspect ratio.

    Always takes `_BOX_DRAWS` draws.

    Args:
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        scale: Bounds of the area, as a share of the image.
        ratios: Bounds of the aspect ratio, width / height.
        draws: Uniform numbers in [0, 1).

    Returns:
        The box; None if all ten tries yield a box that does not fit in the image.
    """
    # Aspect ratios are uniform on a log scale, so that r and 1 / r are equally likely.
    low, high = (math.log(ratio) for ratio in ratios)
    numbers = list(islice(draws, _BOX_DRAWS))
    for at in range(0, len(numbers), 4):
        area, ratio, top, left = numbers[at : at + 4]
        target = width * height * (scale[0] + area * (scale[1] - scale[0]))
        aspect = math.exp(low + ratio * (high - low))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            # Draws are below 1, so every offset at which the box fits is equally likely, and no
            # other offset occurs.
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    return None


def random_resized_crop(
    width: int, height: int, scale: tuple[float, float], draws: Iterator[float]
) -> Box:
    """Return a random crop, distributed like that of torchvision's `RandomResizedCrop`.

    Szegedy et al., "Going deeper with convolutions" (https://arxiv.org/abs/1409.4842). Makes ten
    tries, then falls back to the largest central crop within the bounds of the aspect ratio.

    Args:
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        scale: Bounds of the area, as a share of the image.
        draws: Uniform numbers in [0, 1).

    Returns:
        The crop.
    """
    box = random_box(width, height, scale=scale, ratios=_CROP_RATIOS, draws=draws)
    if box:
        return box
    # At most one side is shortened: an image is too wide or too tall, not both.
    w = min(width, round(height * _CROP_RATIOS[1]))
    h = min(height, round(width / _CROP_RATIOS[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter(image: Tensor, settings: Jitter, draws: Iterator[float]) -> Tensor:
    """Change brightness, contrast, saturation and hue like torchvision's `ColorJitter`.

    Takes 8 draws, which determine the amounts and the order.

    Args:
        image: uint8 [3, H, W].
        settings: Bounds of the amounts.
        draws: Uniform numbers in [0, 1).

    Returns:
        uint8 [3, H, W].
    """
    changes = (
        (F.adjust_brightness, 1.0, settings.brightness),
        (F.adjust_contrast, 1.0, settings.contrast),
        (F.adjust_saturation, 1.0, settings.saturation),
        (F.adjust_hue, 0.0, settings.hue),
    )
    order, amounts = list(islice(draws, 4)), list(islice(draws, 4))
    # Sorting by uniform numbers yields every order with the same probability.
    for number in sorted(range(4), key=order.__getitem__):
        adjust, center, most = changes[number]
        if most:
            # Hue is a signed shift; the other three are factors, which must not be negative.
            low = center - most if number == 3 else max(0.0, center - most)
            image = adjust(image, low + amounts[number] * (center + most - low))
    return image
