"""Graded steps are plain PyTorch's; frozen parts stay put."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from bench.learners import batch_of, engine_of, everything, learner_of, manifest_of
from tests.support.building import build
from worker.model.backbone import preprocessing_of
from worker.model.optimizer import build_optimizer, freeze_at
from worker.model.rate_groups import assign

ALL = manifest_of([{"match": "*"}])


def test_frozen_parts_stay_put_and_cost_no_backward() -> None:
    backbone = build()
    head = backbone.layout.head
    frozen = tuple(name for name in backbone.layout.sizes if name not in head)
    manifest = manifest_of([{"match": "head"}, {"match": "backbone", "freeze": "always"}])
    learner = learner_of(backbone, manifest)
    freeze_at(learner.model, learner.groups, 0)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    features: list[torch.Tensor] = []
    backbone.model.get_submodule("layer4").register_forward_hook(
        lambda _module, _input, output: features.append(output)
    )
    backbone.model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    learner.optimizer.step()
    assert not features[0].requires_grad
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in head), name
    assert [(g["name"], len(g["params"])) for g in learner.optimizer.param_groups] == [("head", 2)]
    assert len(frozen) == 60


def test_stochastic_depth_rests_in_frozen_blocks() -> None:
    backbone = build("efficientnet_b0")
    manifest = manifest_of(
        [{"match": ["head", "features.8"]}, {"match": "*", "freeze": {"steps": 2}}]
    )
    learner = learner_of(backbone, manifest)
    block = backbone.model.get_submodule("features.4.1.stochastic_depth")
    for step, training in ((0, False), (1, False), (2, True)):
        freeze_at(learner.model, learner.groups, step)
        assert block.training == training
        assert backbone.model.get_submodule("classifier.0").training


def test_batch_norm_can_keep_its_statistics_while_it_is_trained(alone: None) -> None:
    backbone = build()
    manifest = manifest_of([{"match": "layer1", "batch_norm": "frozen"}, {"match": "*"}])
    learner = learner_of(backbone, manifest)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    engine_of(backbone, learner, manifest).step(0, batch_of(4, 64, 2), 4)
    for name, tensor in backbone.model.state_dict().items():
        kept = name.startswith("layer1.") and ("running" in name or "tracked" in name)
        assert torch.equal(tensor, before[name]) == kept, name


RECIPES: dict[
    str, tuple[str, list[dict[str, object]], Callable[[Any], list[dict[str, object]]]]
] = {
    "resnet18": (
        "resnet18",
        [{"match": "head"}, {"match": "backbone", "lr": 1e-5}],
        lambda m: [
            {"params": [p for n, p in m.named_parameters() if n[:3] == "fc."], "lr": 1e-3},
            {"params": [p for n, p in m.named_parameters() if n[:3] != "fc."], "lr": 1e-5},
        ],
    ),
    "resnet50": (
        "resnet50",
        [
            {"match": "layer1", "lr": 1e-6},
            {"match": ["layer2", "layer3"], "lr": 1e-5},
            {"match": ["layer4", "fc"], "lr": 1e-3},
            {"match": "*", "lr": 1e-7},
        ],
        lambda m: [
            {"params": [*m.layer1.parameters()], "lr": 1e-6},
            {"params": [*m.layer2.parameters(), *m.layer3.parameters()], "lr": 1e-5},
            {"params": [*m.layer4.parameters(), *m.fc.parameters()], "lr": 1e-3},
            {"params": [*m.conv1.parameters(), *m.bn1.parameters()], "lr": 1e-7},
        ],
    ),
    "efficientnet_b0": (
        "efficientnet_b0",
        [
            {"match": "features.1", "scale": 0.05},
            {"match": ["features.2", "features.3"], "scale": 0.1},
            {"match": "classifier"},
            {"match": "*", "scale": 0.01},
        ],
        lambda m: [
            {"params": [*m.features[1].parameters()], "lr": 5e-5},
            {"params": [*m.features[2].parameters(), *m.features[3].parameters()], "lr": 1e-4},
            {"params": [*m.classifier.parameters()], "lr": 1e-3},
            {
                "params": [p for i in (0, 4, 5, 6, 7, 8) for p in m.features[i].parameters()],
                "lr": 1e-5,
            },
        ],
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_graded_step_is_plain_pytorchs(recipe: str, alone: None) -> None:
    """Through the whole engine, to 1e-6."""
    name, groups, plain_groups = RECIPES[recipe]
    backbone = build(name)
    # The same memory format, or Adam's first step, the sign of the gradient, differs by rounding.
    plain = build(name).model.to(memory_format=torch.channels_last)
    manifest = manifest_of(groups, {"batch_size": 8})
    learner = learner_of(backbone, manifest)
    engine = engine_of(backbone, learner, manifest)
    for model in (learner.model, plain):
        for module in model.modules():
            if isinstance(module, StochasticDepth | nn.Dropout):
                module.p = 0.0
    optimizer = torch.optim.Adam(plain_groups(plain), weight_decay=1e-5)
    plain.train()
    batch = batch_of(8, 64, 2)
    engine.step(0, batch, 8)
    images = preprocessing_of(name).at(64).normalize(batch.images)
    nn.functional.cross_entropy(plain(images), batch.labels).backward()
    optimizer.step()
    largest = 0.0
    for key, tensor in learner.model.state_dict().items():
        largest = max(largest, (tensor - plain.state_dict()[key]).abs().max().item())
    assert largest <= 1e-6


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_are_torchs(name: str) -> None:
    kinds: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.01),
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, weight_decay=0.01),
    }
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3)).to(
                memory_format=torch.channels_last
            )
        )
    more = {"momentum": 0.8} if name == "sgd" else {}
    manifest = manifest_of([{"match": "*"}], name=name, **more)
    groups = [dataclasses.replace(group, weight_decay=0.01) for group in everything(models[0], 0.1)]
    ours = build_optimizer(models[0], groups, manifest.optimizer)
    theirs = kinds[name](models[1].parameters())
    for step in range(3):
        torch.manual_seed(step)
        images = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
        for model, optimizer in ((models[0], ours), (models[1], theirs)):
            model(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_tokens_and_tables_are_no_more_decayed_than_norms() -> None:
    assert "class_token" in build("vit_b_32", side=32).layout.undecayed
    assert "encoder.pos_embedding" in build("vit_b_32", side=32).layout.undecayed
    swin = build("swin_t").layout.undecayed
    assert any(name.endswith("relative_position_bias_table") for name in swin)
    assert "features.1.0.layer_scale" in build("convnext_tiny").layout.undecayed
    assert not any(name.endswith(".weight") for name in build("squeezenet1_1").layout.undecayed)


def test_dropout_before_a_frozen_layer_rests() -> None:
    backbone = build("alexnet", side=224)
    groups = manifest_of([{"match": "head"}, {"match": "backbone", "freeze": "always"}])
    learner = learner_of(backbone, groups)
    freeze_at(learner.model, learner.groups, 0)
    classifier = learner.model.get_submodule("classifier")
    modes = {name: module.training for name, module in classifier.named_children()}
    assert not modes["0"]
    assert not modes["3"]
    assert modes["6"]
    freeze_at(learner.model, assign(backbone.layout, ALL.optimizer, 4), 0)
    assert all(module.training for module in classifier.children())
