"""Activation checkpointing: the same step to the last bit, in less memory."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.processes import Run
from tests.support.sabotage import note_recomputing
from worker.model.activation_checkpointing import _blocks, checkpoint_activations
from worker.model.backbone import build_backbone, logits_of

FAMILIES = {  # with the side of an image, and the share of activations that is kept at most
    "convnext_tiny": (32, 0.6),
    "densenet121": (32, 0.7),
    "efficientnet_b0": (32, 0.6),
    "efficientnet_v2_s": (32, 0.6),
    "googlenet": (64, 0.7),
    "inception_v3": (299, 0.7),
    "maxvit_t": (224, 0.6),
    "mnasnet0_5": (32, 0.6),
    "mobilenet_v2": (32, 0.6),
    "mobilenet_v3_small": (32, 0.6),
    "regnet_y_400mf": (32, 0.6),
    "resnet18": (32, 0.6),
    "resnet50": (32, 0.6),
    "shufflenet_v2_x0_5": (32, 0.7),
    "squeezenet1_1": (64, 0.8),
    "swin_t": (32, 0.6),
    "vit_b_16": (32, 0.6),
}


def step(model: nn.Module, images: Tensor) -> tuple[list[Tensor], int]:
    """Gradients and buffers after forward and backward, and the bytes kept between the two."""
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits, auxiliary = logits_of(model(images))
    loss = logits.square().sum() + sum(other.square().sum() for other in auxiliary)
    size = sum(kept.values())
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *gradients, *model.buffers()], size


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_is_the_same_in_less_memory(name: str) -> None:
    side, share = FAMILIES[name]
    model = build_backbone(name, 3, 0, side).model.train()
    ours = copy.deepcopy(model)
    checkpoint_activations(ours)
    images = torch.rand(2, 3, side, side)
    expected, whole = step(model, images)
    found, kept = step(ours, images)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert kept <= share * whole


def test_evaluation_and_names_are_as_before() -> None:
    model = build_backbone("resnet18", 3, 0, 32).model
    names = list(model.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(images)
        checkpoint_activations(model)
        assert torch.equal(model(images), expected)
    assert list(model.state_dict()) == names
    assert len(list(_blocks(model))) == 8


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_job_ends_with_the_same_weights(
    ranks: str,
    job: dict[str, object],
    write: Callable[[dict[str, object]], str],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    weights = []
    monkeypatch.setenv("RECOMPUTED", str(tmp_path / "recomputed"))
    for setting in (False, True):
        output = f"{tmp_path}/{setting}/"
        settings = {"activation_checkpointing": setting, "ema": 0.9}
        changed = job | {"output": output, "train": {**job["train"], **settings}}  # type: ignore[dict-item]
        ended = run("train", "--nproc", ranks, write(changed), sabotage=note_recomputing)
        assert ended.code == 0, ended.err
        assert (tmp_path / "recomputed").exists() is setting
        weights.append((tmp_path / f"{setting}/final/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
