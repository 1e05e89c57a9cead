"""Backbones, new heads, pretrained weights, freezing."""

import argparse
import dataclasses
import fractions
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import StochasticDepth

from bench.learners import batch_of, engine_of, everything, learner_of, manifest_of
from worker.errors import ConfigurationError
from worker.manifest import Schedule, Span
from worker.model.backbone import Backbone, build_backbone, preprocessing_of
from worker.model.foreign_weights import CONVERT
from worker.model.model_card import Card
from worker.model.optimizer import build_optimizer, freeze_at, set_rates
from worker.model.pretrained_weights import load_pretrained
from worker.model.rate_groups import assign
from worker.model.schedule import factor_at, peaks
from worker.store import open_store

ALL = manifest_of([{"match": "*"}])


def build(name: str = "resnet18", classes: int = 2, seed: int = 0, side: int = 64) -> Backbone:
    return build_backbone(name, classes, seed, side)


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


def imagenet_state(prefix: str = "") -> dict[str, torch.Tensor]:
    state = build(classes=1000, seed=5).model.state_dict()
    return {prefix + name: tensor.contiguous() for name, tensor in state.items()}


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "module. prefix", "no head"])
def test_weights_load_from_every_form(kind: str, tmp_path: Path) -> None:
    state = imagenet_state("module." if kind == "module. prefix" else "")
    if kind == "no head":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    path = tmp_path / ("w.pt" if kind == "state dict" else "w.safetensors")
    torch.save(state, path) if kind == "state dict" else safetensors.torch.save_file(state, path)
    backbone = build()
    assert load_pretrained(backbone, str(path)) == 120
    expected = imagenet_state()
    for name, tensor in backbone.model.state_dict().items():
        if name.startswith("fc."):
            assert tensor.shape[0] == 2
        else:
            assert torch.equal(tensor, expected[name]), name


def files_of_others() -> dict[str, dict[str, object]]:
    """What training scripts save, by the name of the file."""
    state = imagenet_state()
    other = {name: tensor + 1 for name, tensor in state.items()}
    trained = {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 3}
    args = argparse.Namespace(lr=0.1, data_path=Path("/data"), best=np.float64(0.9))
    lightning = {f"model.{name}": tensor for name, tensor in state.items()}
    lightning["criterion.weight"] = torch.ones(2)
    compiled = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    average = {"n_averaged": torch.tensor(3)} | imagenet_state("module.")
    return {
        "reference.pth": {"model": state, "args": args, **trained},
        "reference-ema.pth": {"model": other, "model_ema": average, "args": args, **trained},
        "examples.pth.tar": {"state_dict": imagenet_state("module."), "arch": "x", **trained},
        "lightning.ckpt": {"state_dict": lightning, "callbacks": {}, **trained},
        "timm.pth.tar": {"state_dict": other, "state_dict_ema": state, "args": args, **trained},
        "backbone.bin": dict(imagenet_state("backbone.")),
        "compiled.weights": dict(compiled),
    }


@pytest.mark.parametrize("name", files_of_others())
def test_weights_load_from_what_training_scripts_save(name: str, tmp_path: Path) -> None:
    torch.save(files_of_others()[name], tmp_path / name)
    backbone = build()
    load_pretrained(backbone, f"{tmp_path}/{name}")
    expected = imagenet_state()["layer1.0.conv1.weight"]
    assert torch.equal(backbone.model.state_dict()["layer1.0.conv1.weight"], expected)


def test_the_line_that_converts_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state, strange = imagenet_state(), fractions.Fraction(1, 2)
    model = build(classes=1000, seed=5).model
    for found in ({"model": state, "x": strange}, {"model": model, "x": strange}, model):
        torch.save(found, "FILE")
        with pytest.raises(ConfigurationError, match="where you trust the file") as caught:
            load_pretrained(build(), "./FILE")
        assert CONVERT in str(caught.value)
        exec(CONVERT, {})
        assert load_pretrained(build(), "./plain.pth") == 120


def test_a_model_of_ours_is_compared_with_its_card(tmp_path: Path) -> None:
    safetensors.torch.save_file(imagenet_state(), tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    backbone = build()
    card = Card(
        backbone="resnet18",
        head="fc",
        classes=("a", "b"),
        preprocessing=preprocessing_of("resnet18"),
        sha256="0" * 64,
        metrics={},
    )
    (tmp_path / "model.json").write_bytes(card.encode())
    with pytest.raises(ConfigurationError, match="is not what the model.json beside it describes"):
        load_pretrained(backbone, f"{tmp_path}/model.safetensors")
    right = dataclasses.replace(card, sha256=hashlib.sha256(data).hexdigest())
    (tmp_path / "model.json").write_bytes(right.encode())
    assert load_pretrained(backbone, f"{tmp_path}/model.safetensors") == 120


def test_safetensors_are_known_by_what_they_hold(tmp_path: Path) -> None:
    safetensors.torch.save_file(imagenet_state(), tmp_path / "pytorch_model.bin")
    assert load_pretrained(build(), f"{tmp_path}/pytorch_model.bin") == 120


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"teacher": {}, "epoch": 3}, "holds no state dict, but the keys teacher, epoch; save"),
        ([1], "holds no state dict, but a list; save"),
        ({}, "holds no state dict, but nothing; save"),
        ({"model": {"conv1.weight": torch.ones(2)}}, "holds model with 1 tensor, which do not fit"),
        (
            {"state_dict": {}, "cfg": fractions.Fraction(1, 2)},
            "holds fractions.Fraction beside the tensors, .* where you trust the file, convert it",
        ),
    ],
)
def test_a_file_of_others_that_cannot_be_taken_is_described(
    found: object, complaint: str, tmp_path: Path
) -> None:
    torch.save(found, tmp_path / "w.pth")
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        load_pretrained(build(), f"{tmp_path}/w.pth")
    assert len(str(caught.value).splitlines()) == 1


def refused(tmp_path: Path, state: dict[str, torch.Tensor], complaint: str) -> None:
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigurationError, match=complaint):
        load_pretrained(build(), f"{tmp_path}/w.safetensors")


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
        with pytest.raises(
            ConfigurationError, match="neither safetensors nor a|beside the tensors"
        ):
            load_pretrained(build(), f"{tmp_path}/{name}")
    assert not Path("/tmp/evil-was-here").exists()


@pytest.mark.parametrize("old", ["densenet121", "vit_b_16"])
def test_torchvisions_files_have_older_names(old: str, tmp_path: Path) -> None:
    """Those it offers for download were saved before their parameters were renamed."""
    backbone = build(old, side=32)
    state = {}
    for name, tensor in backbone.model.state_dict().items():
        for new, before in (
            (".norm1.", ".norm.1."),
            (".conv2.", ".conv.2."),
            (".norm2.", ".norm.2."),
            (".conv1.", ".conv.1."),
        ):
            name = name.replace(new, before) if "denselayer" in name else name
        name = name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")
        state[name] = tensor.contiguous()
    assert any("norm.1" in name or "linear_1" in name for name in state)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    other = build(old, seed=1, side=32)
    load_pretrained(other, f"{tmp_path}/w.safetensors")
    for name, tensor in other.model.state_dict().items():
        if name not in other.layout.head:
            assert torch.equal(tensor, backbone.model.state_dict()[name]), name


def test_position_embeddings_are_resized(tmp_path: Path) -> None:
    state = {n: t.contiguous() for n, t in build("vit_b_32", side=64).model.state_dict().items()}
    state["encoder.pos_embedding"] = torch.full_like(state["encoder.pos_embedding"], 0.5)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    larger = build("vit_b_32", side=128)
    load_pretrained(larger, f"{tmp_path}/w.safetensors")
    positions = larger.model.state_dict()["encoder.pos_embedding"]
    assert positions.shape == (1, 17, 768)
    assert torch.allclose(positions, torch.tensor(0.5), atol=1e-5)


def test_auxiliary_classifiers_may_be_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {n: t for n, t in build("googlenet").model.state_dict().items() if "aux" not in n}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    load_pretrained(build("googlenet", seed=1), f"{tmp_path}/w.safetensors")
    assert "no auxiliary classifiers; they start at random" in caplog.text


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


def test_one_cycle_is_torchs() -> None:
    theirs = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 0.5)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, [0.5], total_steps=37)
    model = nn.Linear(2, 2)
    manifest = manifest_of([{"match": "*"}], schedule={"name": "one_cycle"})
    ours = build_optimizer(model, everything(model, 0.5), manifest.optimizer)
    for step in range(37):
        set_rates(ours, factor_at(step, manifest.optimizer.schedule, 37, 5))
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-12)
        assert ours.param_groups[0]["betas"] == pytest.approx(theirs.param_groups[0]["betas"])
        theirs.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [1, 1, 1, 1, 1, 1, 1, 1]),
        (Schedule(warmup=Span(steps=3)), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (Schedule(warmup=Span(epochs=0.5)), [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        (Schedule(name="linear", final=0.2), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        (
            Schedule(name="cosine", warmup=Span(steps=4)),
            [0.2, 0.4, 0.6, 0.8, 1, 0.853553, 0.5, 0.146447],
        ),
        (
            Schedule(name="step", every=Span(steps=3), factor=0.5),
            [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25],
        ),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    factors = [factor_at(step, schedule, total=8, steps_per_epoch=4).rate for step in range(8)]
    assert factors == pytest.approx(expected, abs=1e-6)


@given(
    st.sampled_from(["constant", "cosine", "linear", "one_cycle"]),
    st.integers(1, 200),
    st.integers(0, 20),
)
def test_no_schedule_leaves_its_bounds(name: str, total: int, warmup: int) -> None:
    more = {"warmup": Span(steps=warmup)} if warmup and name != "one_cycle" else {}
    schedule = Schedule.model_validate({"name": name, **more})
    rates = [factor_at(step, schedule, total, 10).rate for step in range(total)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] > 0


@given(
    st.sampled_from(["constant", "cosine", "linear", "step", "one_cycle"]),
    st.integers(1, 60),
    st.integers(0, 60),
    st.integers(0, 59),
)
def test_a_rate_peaks_where_the_schedule_says(name: str, total: int, warm: int, at: int) -> None:
    """From any release on, the highest rate is there or at the peaks that come later."""
    more = {"warmup": Span(steps=warm)} if warm and name != "one_cycle" else {}
    every = {"every": Span(steps=7)} if name == "step" else {}
    schedule = Schedule.model_validate({"name": name, **more, **every})

    def factor(step: int) -> float:
        return factor_at(step, schedule, total, 4).rate

    release = at % total
    tops = {min(max(top, release), total - 1) for top in peaks(schedule, total, 4)}
    assert max(map(factor, tops)) == max(map(factor, range(release, total)))


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


@pytest.mark.parametrize(
    "wrapping", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."]
)
def test_weights_of_wrapped_models_fit(wrapping: str, tmp_path: Path) -> None:
    state = {f"{wrapping}{name}": t for name, t in build(seed=1).model.state_dict().items()}
    torch.save({**state, "n_averaged": torch.tensor(3)}, tmp_path / "w.pt")
    backbone = build()
    load_pretrained(backbone, f"{tmp_path}/w.pt")
    expected = build(seed=1).model.get_parameter("conv1.weight")
    assert torch.equal(backbone.model.get_parameter("conv1.weight"), expected)


def test_misshapen_positions_are_named(tmp_path: Path) -> None:
    backbone = build("vit_b_32", side=32)
    for shape in ([1, 6, 768], [2, 5, 768], [768]):
        state = {**backbone.model.state_dict(), "encoder.pos_embedding": torch.zeros(shape)}
        safetensors.torch.save_file(state, f"{tmp_path}/w.safetensors")
        with pytest.raises(ConfigurationError, match="1 misshapen"):
            load_pretrained(backbone, f"{tmp_path}/w.safetensors")
