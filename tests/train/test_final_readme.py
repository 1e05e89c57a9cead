"""The snippet in `final/README.md` builds every family as it was trained."""

import pytest
import torch
import torchvision

from worker.model.backbone import build_backbone
from worker.model.skeleton import family_options

ONE_OF_EACH = [
    *(
        "alexnet",
        "vgg11",
        "googlenet",
        "inception_v3",
        "squeezenet1_0",
        "densenet121",
        "mnasnet0_5",
    ),
    *("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "maxvit_t"),
    *("efficientnet_b0", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_32", "resnet18"),
]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_torchvision_alone_builds_the_model(name: str) -> None:
    size = {"inception_v3": 299, "vit_b_32": 96}.get(name, 224)
    with torch.device("meta"):
        trained = build_backbone(name, 5, 0, size).model.state_dict()
        model = torchvision.models.get_model(name, num_classes=5, **family_options(name, size))
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in trained.items()} == expected
