"""Every backbone of torchvision, from a new head to a reload."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from torch import nn
from torchvision.ops import StochasticDepth

from bench.learners import batch_of, engine_of, learner_of, manifest_of
from tests.support.backbones import HEAVY
from tests.support.snapshots import snapshot_of
from worker.checkpoint.snapshot import restore_snapshot
from worker.errors import ConfigurationError
from worker.model.backbone import build_backbone, layout_of, preprocessing_of
from worker.model.learner import Learner
from worker.model.pretrained_weights import load_pretrained
from worker.model.skeleton import known_models

# With Adam's state these would not fit into 24 GiB.
GIANTS = {"vit_h_14": 0.1, "regnet_y_128gf": 1e-3}


SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 28, "vit_b_16": 32, "vit_l_16": 32}


def size_of(name: str) -> int:
    return SIZES.get(name, 64)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.heavy] if name in HEAVY else [])
        for name in known_models()
    ],
)
def test_a_backbone_from_new_head_to_reload(name: str, alone: None, tmp_path: Path) -> None:
    side = size_of(name)
    rate = GIANTS.get(name)
    settings: dict[str, Any] = {"name": "sgd", "lr": rate} if rate else {}
    groups: list[dict[str, Any]] = [{"match": "head"}, {"match": "backbone", "layer_decay": 0.9}]
    manifest = manifest_of(groups, **settings)
    backbone = build_backbone(name, 3, 0, side)
    learner = learner_of(backbone, manifest)
    engine = engine_of(backbone, learner, manifest)
    for module in learner.model.modules():
        if isinstance(module, StochasticDepth | nn.Dropout):
            module.p = 0.0
    before = fingerprints(learner.model)
    reached: set[str] = set()
    for key, tensor in learner.model.named_parameters():
        tensor.register_post_accumulate_grad_hook(lambda _, key=key: reached.add(key))
    for step in range(2 if name.startswith("vit") else 1):  # whose head starts at zero
        outcome = engine.step(step, batch_of(2, side, 3), 2)
        assert outcome.finite
        assert outcome.sums.isfinite().all()
    assert reached == set(before), "DDP would wait for the gradients of the others"
    after = fingerprints(learner.model)
    still = [name for name in before if after[name] == before[name]]
    assert len(still) <= 0.05 * len(before), still  # a ReLU may be dead at this size
    assert not backbone.layout.head & set(still)

    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    outputs = evaluated(learner, images)
    del engine
    gc.collect()  # the largest fit in 24 GiB only one copy at a time
    parts = snapshot_of(learner, {})
    del learner
    for (
        tensor
    ) in backbone.model.state_dict().values():  # building another takes as long as all this
        tensor.zero_()
    copied = learner_of(backbone, manifest)
    restore_snapshot(parts, copied)
    assert outputs.shape == (2, 3)
    assert outputs.isfinite().all()
    assert torch.equal(evaluated(copied, images), outputs)

    trained = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    for parameter in backbone.model.parameters():
        parameter.data.zero_()
    (tmp_path / "model.safetensors").write_bytes(parts["model.safetensors"])
    load_pretrained(backbone, f"{tmp_path}/model.safetensors")
    for key, tensor in backbone.model.state_dict().items():
        if key in backbone.layout.head:
            assert not tensor.any(), key
        else:
            assert torch.equal(tensor, trained[key]), key


def fingerprints(model: nn.Module) -> dict[str, bytes]:
    """A digest per parameter, as a copy of the largest models would take too much memory."""
    return {
        name: xxhash.xxh3_128_digest(parameter.detach().contiguous().numpy().tobytes())
        for name, parameter in model.named_parameters()
    }


def evaluated(learner: Learner, images: torch.Tensor) -> torch.Tensor:
    learner.model.eval()
    with torch.inference_mode():
        outputs: torch.Tensor = learner.model(images)
    return outputs


def test_blocks_have_the_names_that_people_use() -> None:
    names = [block.name for block in layout_of("resnet50", 224).blocks]
    assert names == ["conv1+bn1", "layer1", "layer2", "layer3", "layer4", "head"]
    names = [block.name for block in layout_of("vit_b_16", 224).blocks]
    assert names[:2] == ["conv_proj", "encoder.layers.encoder_layer_0"]
    assert names[-2] == "encoder.layers.encoder_layer_11+encoder.ln"
    first = layout_of("vit_b_16", 224).blocks[0].parameters
    assert {"class_token", "encoder.pos_embedding"} <= first
    names = [block.name for block in layout_of("googlenet", 224).blocks]
    assert names[-2:] == ["inception5b", "head"]


@pytest.mark.parametrize(
    ("name", "side", "complaint"),
    [
        ("inception_v3", 128, "inception_v3 cannot be trained at 128 pixels; its own size is 299"),
        ("vit_b_16", 100, "vit_b_16 cannot be trained at 100 pixels"),
        ("maxvit_t", 200, "maxvit_t cannot be trained at 200 pixels"),
        ("resnet", 64, "no model 'resnet'; did you mean"),
    ],
)
def test_what_does_not_fit_is_said(name: str, side: int, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        build_backbone(name, 2, 0, side)


def test_a_preset_is_that_of_the_weights() -> None:
    assert preprocessing_of("resnet50", "IMAGENET1K_V1").resize_size == 256
    assert preprocessing_of("resnet50", "IMAGENET1K_V2").resize_size == 232
    assert preprocessing_of("vit_h_14", "IMAGENET1K_SWAG_LINEAR_V1").crop_size == 224
    assert preprocessing_of("vit_h_14", "s3://somewhere/else.pt").crop_size == 518


def test_auxiliary_classifiers_count_as_their_papers_say(alone: None) -> None:
    """GoogLeNet: each auxiliary loss counts 0.3; Inception v3 (recipe): 0.4."""
    assert build_backbone("inception_v3", 3, 0, 299).auxiliary_weight == 0.4
    backbone = build_backbone("googlenet", 3, 0, 64)
    manifest = manifest_of([{"match": "*"}])
    learner = learner_of(backbone, manifest)
    engine = engine_of(backbone, learner, manifest)
    for module in learner.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = batch_of(4, 64, 3)
    outputs = learner.model.train()(preprocessing_of("googlenet").at(64).normalize(batch.images))
    losses = [nn.functional.cross_entropy(one, batch.labels).item() for one in outputs]
    sums = engine.step(0, batch, 4).sums
    assert sums[0].item() / 4 == pytest.approx(losses[0] + 0.3 * (losses[1] + losses[2]), rel=1e-4)
