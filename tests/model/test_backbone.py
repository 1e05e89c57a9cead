"""New heads, seeds and image sizes."""

import pytest
import torch

from tests.support.building import build
from worker.model.backbone import preprocessing_of


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "squeezenet1_1"])
def test_a_new_head_starts_as_its_family_does_for_imagenet(name: str) -> None:
    from torchvision import models

    backbone = build(name)
    torch.manual_seed(0)
    theirs = models.get_model(name).state_dict()
    ours = backbone.model.state_dict()
    for parameter in backbone.layout.head:
        assert torch.equal(ours[parameter], theirs[parameter][:2])


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (build(seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_sizes_scale_together() -> None:
    assert (preprocessing_of("resnet50").crop_size) == 224
    small = preprocessing_of("efficientnet_b0").at(112)
    assert (small.crop_size, small.resize_size) == (112, 128)
