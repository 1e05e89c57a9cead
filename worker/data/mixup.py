"""MixUp and CutMix: each image of a global batch blended with the one before it.

"mixup: Beyond empirical risk minimization" (Zhang et al., 2017), "CutMix" (Yun et al., 2019). All
draws are keyed by (seed, step) and identical on all ranks. The partner of a sample is the previous
one in the global batch, and the partner of the first sample is the last, so the pairs are the same
for any number of ranks.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.data.epoch_plan import keyed_hash


def partners_of(valid: Tensor) -> Tensor:
    """Return the index of each image's partner among N samples, int64 [N - 1].

    The N samples are one extra sample, followed by the N - 1 images of the batch; `valid`,
    bool [N], marks the usable samples. An image whose partner was left out is blended with itself.
    """
    # Image i of the batch is sample i + 1, so its partner, the sample before it, is sample i.
    places = torch.arange(1, len(valid))
    return torch.where(valid[:-1], places - 1, places)


@dataclass(frozen=True)
class Blend:
    """The blending of a batch."""

    own: float
    """The weight of an image's own label; with MixUp, also of its own pixels."""
    box: tuple[int, int, int, int] | None
    """The box that CutMix takes from the partner: top, left, height, width; None for MixUp."""

    def apply(self, images: Tensor, partners: Tensor) -> Tensor:
        """Blend images, float [N, 3, S, S], with their partners, of the same shape."""
        if self.box is None:
            return images * self.own + partners * (1 - self.own)
        top, left, height, width = self.box
        blended = images.clone()
        rows, columns = slice(top, top + height), slice(left, left + width)
        blended[:, :, rows, columns] = partners[:, :, rows, columns]
        return blended


def draw_blend(*, mixup: float, cutmix: float, side: int, seed: int, step: int) -> Blend:
    """Draw how a global batch is blended.

    If both MixUp (https://arxiv.org/abs/1710.09412) and CutMix (https://arxiv.org/abs/1905.04899)
    are enabled, each batch uses one of them, with equal probability.

    Args:
        mixup: Alpha of Beta(alpha, alpha) for MixUp; 0 for none.
        cutmix: Alpha for CutMix; 0 for none.
        side: Side of the images, in pixels.
        seed: The job's seed.
        step: The global step, from 0.

    Returns:
        The blend.
    """
    # The legacy generator: NumPy guarantees that its streams will not change.
    words = keyed_hash(seed, step, np.arange(8)) & np.uint64(0xFFFFFFFF)
    random = np.random.RandomState(words.astype(np.uint32))
    use_cutmix = bool(cutmix) and (not mixup or random.random_sample() < 0.5)
    own = float(random.beta(cutmix, cutmix) if use_cutmix else random.beta(mixup, mixup))
    if not use_cutmix:
        return Blend(own, None)
    # A square around a uniformly drawn center that covers 1 - own of the image before clipping.
    half = math.sqrt(1 - own) / 2 * side
    x, y = (int(random.randint(side)) for _ in range(2))
    top, bottom = max(0, int(y - half)), min(side, int(y + half))
    left, right = max(0, int(x - half)), min(side, int(x + half))
    height, width = bottom - top, right - left
    # The label follows the area that is really replaced, as the border may have clipped the box.
    return Blend(1 - height * width / side**2, (top, left, height, width))
