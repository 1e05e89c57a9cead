"""RandAugment and its operations are those of torchvision."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from tests.support.augmenting import SIDE, picture
from worker.data.augment_policies import OPERATIONS, rand_augment, trivial_augment
from worker.data.epoch_plan import keyed_uniform


@pytest.mark.parametrize("level", [0, 9, 30])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    ("policy", "theirs"),
    [(rand_augment(2, 9), v2.RandAugment), (trivial_augment(), v2.TrivialAugmentWide)],
)
def test_operations_are_those_of_torchvision(
    policy: Any, theirs: type[v2.Transform], name: str, negative: bool, level: int
) -> None:
    image = picture(SIDE, SIDE)
    transform = theirs(interpolation=v2.InterpolationMode.NEAREST)
    strengths, signed = transform._AUGMENTATION_SPACE[name]
    magnitudes = strengths(31, SIDE, SIDE)
    magnitude = 0.0 if magnitudes is None else float(magnitudes[level])
    expected = transform._apply_image_or_video_transform(
        image,
        name,
        -magnitude if negative and signed else magnitude,
        interpolation=transform.interpolation,
        fill=transform._fill,
    )
    strength = policy.magnitude(name, level, SIDE, negative=negative)
    difference = OPERATIONS[name](image, strength).int() - expected.int()
    assert difference.abs().max() <= 1  # torchvision's magnitudes are rounded to float32


def test_every_operation_is_drawn_equally_often() -> None:
    policy = rand_augment(1, 9)
    counts = dict.fromkeys(OPERATIONS, 0)
    operations: dict[str, Callable[[Tensor, float], Tensor]] = dict(OPERATIONS)

    def counted(name: str) -> Callable[[Tensor, float], Tensor]:
        def apply(image: Tensor, _: float) -> Tensor:
            counts[name] += 1
            return image

        return apply

    with pytest.MonkeyPatch.context() as patch:
        for name in operations:
            patch.setitem(OPERATIONS, name, counted(name))
        for draws in keyed_uniform(policy.draws, 0, 0, np.arange(7000)).tolist():
            policy.apply(torch.zeros(3, 4, 4), iter(draws))
    assert sum(counts.values()) == 7000
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600
