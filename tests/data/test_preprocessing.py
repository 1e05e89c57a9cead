"""Evaluation uses the weights' own preset."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import EfficientNet_B0_Weights, Swin_T_Weights
from torchvision.transforms.functional import center_crop

from worker.data.decode_image import ImageSpec, decode
from worker.model.backbone import preprocessing_of


@pytest.mark.parametrize(
    ("name", "weights"), [("efficientnet_b0", EfficientNet_B0_Weights), ("swin_t", Swin_T_Weights)]
)
def test_evaluation_uses_the_weights_own_preset(name: str, weights: Any) -> None:
    random = np.random.default_rng(0)
    original = Image.fromarray(random.integers(0, 255, (300, 400, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    original.save(buffer, "PNG")
    ours = preprocessing_of(name)
    out = torch.empty(3, ours.crop_size, ours.crop_size, dtype=torch.uint8)
    ours.evaluated(decode(memoryview(buffer.getvalue()), ImageSpec(10**6)), out)
    theirs = weights.DEFAULT.transforms()(original)
    assert torch.allclose(ours.normalize(out[None])[0], theirs, atol=0.02)  # a level of 255


@pytest.mark.parametrize("size", [30, 31, 32, 33, 37])
def test_a_crop_is_placed_as_torchvision_places_it(size: int) -> None:
    ours = dataclasses.replace(preprocessing_of("resnet18"), crop_size=32, resize_size=size)
    picture = torch.randint(0, 255, (3, size, size), dtype=torch.uint8)
    out = torch.empty(3, 32, 32, dtype=torch.uint8)
    ours.evaluated(picture, out)
    assert torch.equal(out, center_crop(picture, [32, 32]))


def test_a_crop_larger_than_the_resize_is_padded() -> None:
    small = preprocessing_of("resnet18").at(32)
    small = dataclasses.replace(small, crop_size=40, resize_size=32)
    out = torch.full((3, 40, 40), 7, dtype=torch.uint8)
    small.evaluated(torch.full((3, 64, 64), 200, dtype=torch.uint8), out)
    assert out[:, 4:36, 4:36].eq(200).all()
    assert out.sum() == 200 * 3 * 32 * 32
