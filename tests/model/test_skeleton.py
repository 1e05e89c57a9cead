"""Heads and blocks follow the structure of a backbone."""

import pytest
import torch

from tests.support.backbones import HEAVY
from worker.model.backbone import layout_of, preprocessing_of
from worker.model.skeleton import find_blocks, find_heads, is_auxiliary, known_models, skeleton

HEADS = {
    "alexnet": "classifier.6",
    "convnext": "classifier.2",
    "densenet": "classifier",
    "efficientnet": "classifier.1",
    "googlenet": "aux1.fc2 aux2.fc2 fc",
    "inception": "AuxLogits.fc fc",
    "maxvit": "classifier.5",
    "mnasnet": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3": "classifier.3",
    "regnet": "fc",
    "resnet": "fc",
    "resnext": "fc",
    "shufflenet": "fc",
    "squeezenet": "classifier.1",
    "swin": "head",
    "vgg": "classifier.6",
    "vit": "heads.head",
    "wide": "fc",
}


def test_the_list_is_torchvisions() -> None:
    assert len(known_models()) >= 80
    assert set(HEAVY) <= set(known_models())


@pytest.mark.parametrize("name", known_models())
def test_heads_and_blocks_follow_the_structure(name: str) -> None:
    side = preprocessing_of(name).crop_size
    model = skeleton(name, side)
    heads = find_heads(model)
    family = max((f for f in HEADS if name.startswith(f)), key=len)
    assert heads == tuple(HEADS[family].split())
    layout = layout_of(name, side)
    placed = [name for block in layout.blocks for name in block.parameters]
    assert sorted(placed) == sorted(layout.sizes), "a parameter is in no block or in two"
    assert 6 <= len(layout.blocks) <= 34
    assert layout.blocks[-1].parameters == {
        f"{head}.{key}" for head in heads for key, _ in model.get_submodule(head).named_parameters()
    }


@pytest.mark.parametrize("name", known_models())
def test_blocks_are_in_the_order_in_which_an_image_passes_them(name: str) -> None:
    side = preprocessing_of(name).crop_size
    model = skeleton(name, side).eval()
    passed: list[int] = []
    hooks = []
    blocks = find_blocks(model, find_heads(model))
    for number, paths in enumerate(blocks):
        for path in paths:
            if not is_auxiliary(path):
                module = model.get_submodule(path)
                hooks.append(
                    module.register_forward_hook(lambda *_, number=number: passed.append(number))
                )
    model(torch.empty(1, 3, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    assert passed == sorted(passed)
    assert set(passed) == set(range(len(blocks)))
