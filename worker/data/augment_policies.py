"""RandAugment and TrivialAugment, driven by given random numbers, not by a global generator.

Operations and strengths are those of RandAugment (Cubuk et al., 2019) and TrivialAugment (Müller
and Hutter, 2021) in torchvision, whose functional kernels do the work.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import functional as F

_BINS = 31

Apply = Callable[[Tensor, float], Tensor]
"""(uint8 [3, S, S], magnitude) -> the same shape."""


def _affine(image: Tensor, translate: list[int], shear: list[float]) -> Tensor:
    # Shears are about the top-left corner, as in the papers' code; translations need no center.
    return F.affine(image, 0.0, translate, 1.0, shear, center=[0, 0])


def _angle(shear: float) -> float:
    return math.degrees(math.atan(shear))


OPERATIONS: dict[str, Apply] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, m: _affine(image, [0, 0], [_angle(m), 0.0]),
    "ShearY": lambda image, m: _affine(image, [0, 0], [0.0, _angle(m)]),
    "TranslateX": lambda image, m: _affine(image, [int(m), 0], [0.0, 0.0]),
    "TranslateY": lambda image, m: _affine(image, [0, int(m)], [0.0, 0.0]),
    "Rotate": F.rotate,
    "Brightness": lambda image, m: F.adjust_brightness(image, 1.0 + m),
    "Color": lambda image, m: F.adjust_saturation(image, 1.0 + m),
    "Contrast": lambda image, m: F.adjust_contrast(image, 1.0 + m),
    "Sharpness": lambda image, m: F.adjust_sharpness(image, 1.0 + m),
    "Posterize": lambda image, m: F.posterize(image, int(m)),
    "Solarize": lambda image, m: F.solarize(image, 255.0 * m),
    "AutoContrast": lambda image, _: F.autocontrast(image),
    "Equalize": lambda image, _: F.equalize(image),
}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The largest strength of each operation, and the number of operations to apply."""

    shear: float
    """Shear, as a slope."""
    translate: float
    """Translation in pixels, or as a share of the side if below 1."""
    rotate: float
    """Rotation, in degrees."""
    color: float
    """Change in the factors of brightness, contrast, saturation and sharpness, relative to 1."""
    posterize: int
    """Number of bits removed."""
    operations: int
    """Number of operations applied to an image."""
    level: int | None
    """Strength level, from 0 to 30; None to draw it anew for each image."""

    @property
    def draws(self) -> int:
        """Number of uniform random numbers that an image needs."""
        return 3 * self.operations

    def apply(self, image: Tensor, draws: Iterator[float]) -> Tensor:
        """Apply the drawn operations to uint8 [3, S, S]."""
        for _ in range(self.operations):
            # Always three draws, even if the operation ignores some, to keep `draws` constant.
            which, level, sign = next(draws), next(draws), next(draws)
            # Draws select by position, so the order of OPERATIONS is part of what makes runs
            # reproducible.
            name = list(OPERATIONS)[int(which * len(OPERATIONS))]
            bin_ = int(level * _BINS) if self.level is None else self.level
            image = OPERATIONS[name](
                image, self.magnitude(name, bin_, image.shape[-1], negative=sign < 0.5)
            )
        return image

    def magnitude(self, name: str, level: int, side: int, *, negative: bool) -> float:
        """Return the strength of an operation.

        Args:
            name: The operation.
            level: Strength level, from 0 to 30.
            side: Side of the image, in pixels; relative translations are multiplied by it.
            negative: Whether a signed operation gets a negative strength.

        Returns:
            The strength in the operation's own unit.
        """
        share = level / (_BINS - 1)
        if name == "Posterize":
            # The number of bits that are kept.
            return round(8 - share * self.posterize)
        if name == "Solarize":
            # A threshold, as a share of 255. A stronger operation has a lower one and inverts more
            # pixels.
            return 1 - share
        translate = self.translate * side if self.translate < 1 else self.translate
        # By the first five letters, which the X and Y variants share. `color` is the default;
        # operations without a strength ignore it.
        most = {"Shear": self.shear, "Trans": translate, "Rotat": self.rotate}
        magnitude = share * most.get(name[:5], self.color)
        return -magnitude if negative else magnitude


def rand_augment(operations: int, magnitude: int) -> Policy:
    """Return RandAugment: N operations at a single strength M, from 0 to 30."""
    return Policy(
        shear=0.3,
        # As in torchvision: AutoAugment's 150 pixels, as a share of its image side of 331.
        translate=150 / 331,
        rotate=30.0,
        color=0.9,
        posterize=4,
        operations=operations,
        level=magnitude,
    )


def trivial_augment() -> Policy:
    """Return TrivialAugment (wide): one operation at a random strength."""
    return Policy(
        shear=0.99, translate=32.0, rotate=135.0, color=0.99, posterize=6, operations=1, level=None
    )
