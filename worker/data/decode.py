"""Encoded images as uint8 pixels; the augmentation of a sample is keyed by (seed, epoch, sample).

Pixels stay uint8 until they are on the device (`normalise`), where float work is cheap.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from worker.data.plan import keyed_hash
from worker.data.reader import Sample
from worker.errors import DataError
from worker.manifest import Augment

_ASPECT_RATIOS = (3 / 4, 4 / 3)
_CROP_TRIES = 10


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone wants its images: sizes in pixels, mean and std per RGB channel of [0, 1]."""

    crop_size: int
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: InterpolationMode

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] as float32 of zero mean and unit variance, on the images' device.

        In channels-last memory, which convolutions prefer.
        """
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1) * 255
        images = images.to(torch.float32, memory_format=torch.channels_last)
        return (images - mean) / std


@dataclass(frozen=True)
class Draws:
    """Uniform numbers in [0, 1) that are fixed by a key, taken in a stated order."""

    values: tuple[float, ...]

    @classmethod
    def keyed(cls, count: int, *key: int) -> "Draws":
        """`count` numbers for `key`."""
        bits = keyed_hash(*key, range(count)) >> 11
        return cls(tuple((bits / 2**53).tolist()))


def random_resized_crop(
    width: int, height: int, scale: tuple[float, float], draws: Draws
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of random area and aspect ratio.

    The law is torchvision's `RandomResizedCrop` (Szegedy et al., "Going deeper with convolutions",
    2014): ten tries, then the largest central crop within the aspect ratios. Takes
    `4 * _CROP_TRIES` draws.
    """
    low, high = (math.log(ratio) for ratio in _ASPECT_RATIOS)
    for number in range(_CROP_TRIES):
        area, ratio, top, left = draws.values[4 * number : 4 * number + 4]
        target = width * height * (scale[0] + area * (scale[1] - scale[0]))
        aspect = math.exp(low + ratio * (high - low))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w = min(width, round(height * _ASPECT_RATIOS[1]))
    h = min(height, round(width / _ASPECT_RATIOS[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def decode(sample: Sample) -> Tensor:
    """The image as uint8 RGB [3, H, W], upright; raises `DataError` where it is no whole image."""
    try:
        return decode_image(
            torch.frombuffer(bytearray(sample.image), dtype=torch.uint8),
            ImageReadMode.RGB,
            apply_exif_orientation=True,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rpartition(", ")[2].rstrip(". ")
        raise DataError(
            f"{sample.name}: cannot be decoded ({reason}); repair or remove it and pack again"
        ) from None


def for_training(
    sample: Sample, preprocessing: Preprocessing, augment: Augment, key: tuple[int, int, int]
) -> Tensor:
    """The augmented image, uint8 [3, S, S], S the crop size; `key` is (seed, epoch, sample id)."""
    image = decode(sample)
    height, width = image.shape[-2:]
    draws = Draws.keyed(4 * _CROP_TRIES + 1, *key)
    top, left, h, w = random_resized_crop(width, height, augment.crop_scale, draws)
    size = [preprocessing.crop_size, preprocessing.crop_size]
    image = F.resized_crop(
        image, top, left, h, w, size, preprocessing.interpolation, antialias=True
    )
    return F.horizontal_flip(image) if draws.values[-1] < augment.flip else image


def for_evaluation(sample: Sample, preprocessing: Preprocessing) -> Tensor:
    """The image as the weights' preset prepares it, uint8 [3, S, S]: resize, central crop."""
    image = F.resize(
        decode(sample), [preprocessing.resize_size], preprocessing.interpolation, antialias=True
    )
    return F.center_crop(image, [preprocessing.crop_size, preprocessing.crop_size])
