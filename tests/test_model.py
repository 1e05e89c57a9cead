"""Backbones, new heads, pretrained weights, freezing."""

import io
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from worker.errors import ConfigurationError
from worker.model.backbone import build_backbone, preprocessing_of
from worker.model.groups import RateGroup
from worker.model.optimizer import build_optimizer, freeze, train_mode
from worker.model.weights import load_pretrained
from worker.store import open_store

FAMILIES = ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "efficientnet_b0"]


@pytest.mark.parametrize("name", [*FAMILIES, "efficientnet_v2_s"])
def test_families_get_a_head_for_the_classes(name: str) -> None:
    backbone = build_backbone(name, 3, seed=0)
    head = backbone.model.get_submodule(backbone.head)
    assert isinstance(head, nn.Linear)
    assert head.out_features == 3
    assert backbone.head_parameters == {f"{backbone.head}.weight", f"{backbone.head}.bias"}
    assert backbone.model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_b_16"])
def test_a_new_head_starts_as_its_family_does_for_imagenet(name: str) -> None:
    from torchvision import models

    backbone = build_backbone(name, 2, seed=0)
    torch.manual_seed(0)
    theirs = models.get_model(name).state_dict()
    ours = backbone.model.state_dict()
    for parameter in backbone.head_parameters:
        assert torch.equal(ours[parameter], theirs[parameter][:2])


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (
        build_backbone("resnet18", 2, seed).model.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_sizes_scale_together() -> None:
    assert (preprocessing_of("resnet50", None).crop_size) == 224
    small = preprocessing_of("efficientnet_b0", 112)
    assert (small.crop_size, small.resize_size) == (112, 128)


def imagenet_state(prefix: str = "") -> dict[str, torch.Tensor]:
    state = build_backbone("resnet18", 1000, seed=5).model.state_dict()
    return {prefix + name: tensor.contiguous() for name, tensor in state.items()}


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "module. prefix", "no head"])
def test_weights_load_from_every_form(kind: str, tmp_path: Path) -> None:
    state = imagenet_state("module." if kind == "module. prefix" else "")
    if kind == "no head":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    path = tmp_path / ("w.pt" if kind == "state dict" else "w.safetensors")
    torch.save(state, path) if kind == "state dict" else safetensors.torch.save_file(state, path)
    backbone = build_backbone("resnet18", 2, seed=0)
    assert load_pretrained(backbone, str(path)) == 120
    expected = imagenet_state()
    for name, tensor in backbone.model.state_dict().items():
        if name.startswith("fc."):
            assert tensor.shape[0] == 2
        else:
            assert torch.equal(tensor, expected[name]), name


def refused(tmp_path: Path, state: dict[str, torch.Tensor], complaint: str) -> None:
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigurationError, match=complaint):
        load_pretrained(build_backbone("resnet18", 2, seed=0), f"{tmp_path}/w.safetensors")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = imagenet_state()
    refused(tmp_path, state | {"extra": torch.zeros(1)}, r"1 unexpected \(extra\)")
    refused(
        tmp_path,
        state | {"conv1.weight": torch.zeros(2, 2)},
        r"1 misshapen \(conv1.weight is \[2, 2\], not \[64, 3, 7, 7\]\)",
    )
    del state["bn1.weight"], state["bn1.num_batches_tracked"]
    refused(tmp_path, state, r"resnet18: 1 missing \(bn1.weight\)$")


class Evil:
    """Would run code if anything unpickled it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path("/tmp/evil-was-here").touch, ())


def test_pickles_are_never_run(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"conv1.weight": Evil()}, buffer)
    store = open_store(str(tmp_path))
    for name, data in (("w.pt", buffer.getvalue()), ("x.pt", b"nonsense"), ("y.safetensors", b"")):
        store.put(name, data)
        with pytest.raises(ConfigurationError, match="neither safetensors nor a state dict"):
            load_pretrained(build_backbone("resnet18", 2, seed=0), f"{tmp_path}/{name}")
    assert not Path("/tmp/evil-was-here").exists()


def test_frozen_parts_stay_put_and_cost_no_backward() -> None:
    backbone = build_backbone("resnet18", 2, seed=0)
    names = [name for name, _ in backbone.model.named_parameters()]
    frozen = tuple(name for name in names if name not in backbone.head_parameters)
    groups = [
        RateGroup("head", 0.1, 0.0, False, ("fc.weight", "fc.bias")),
        RateGroup("backbone", 0.0, 0.0, True, frozen),
    ]
    freeze(backbone.model, groups)
    optimizer = build_optimizer(backbone.model, groups, "adam")
    train_mode(backbone.model)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    features: list[torch.Tensor] = []
    backbone.model.get_submodule("layer4").register_forward_hook(
        lambda _module, _input, output: features.append(output)
    )
    backbone.model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    assert not features[0].requires_grad
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in backbone.head_parameters), name
    assert [(g["name"], g["lr"], len(g["params"])) for g in optimizer.param_groups] == [
        ("head", 0.1, 2)
    ]


def test_a_graded_step_is_plain_pytorchs() -> None:
    ours, theirs = (build_backbone("resnet18", 2, seed=0).model for _ in range(2))
    names = [name for name, _ in ours.named_parameters()]
    head = ("fc.weight", "fc.bias")
    rest = tuple(name for name in names if name not in head)
    groups = [RateGroup("head", 1e-3, 1e-5, False, head), RateGroup("*", 1e-5, 1e-5, False, rest)]
    optimizer = build_optimizer(ours, groups, "adam")
    plain = torch.optim.Adam(
        [
            {"params": list(theirs.fc.parameters()), "lr": 1e-3},  # type: ignore[union-attr]
            {"params": [p for n, p in theirs.named_parameters() if n[:3] != "fc."], "lr": 1e-5},
        ],
        weight_decay=1e-5,
    )
    images = torch.randn(4, 3, 64, 64)
    for model, one in ((ours, optimizer), (theirs, plain)):
        model(images).square().sum().backward()
        one.step()
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, theirs.state_dict()[name], atol=1e-6), name
