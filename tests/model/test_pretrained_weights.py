"""Weights of every form load, or the message says why not."""

import argparse
import dataclasses
import fractions
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.support.building import build
from worker.errors import ConfigurationError
from worker.model.backbone import preprocessing_of
from worker.model.foreign_weights import CONVERT
from worker.model.model_card import Card
from worker.model.pretrained_weights import load_pretrained
from worker.store import open_store


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
        with pytest.raises(ConfigurationError, match="if you trust the file") as caught:
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
        (
            {"teacher": {}, "epoch": 3},
            r"holds no state dict \(found the keys teacher, epoch\); save",
        ),
        ([1], r"holds no state dict \(found a list\); save"),
        (
            {
                "teacher": {"w": torch.ones(1), "b": torch.ones(1)},
                "app": {"model": {"w": torch.ones(1)}},
            },
            r"holds no state dict \(found 2 tensors under teacher, 1 tensor under app.model\); save",
        ),
        ({}, r"holds no state dict \(found nothing\); save"),
        (
            {"model": {"conv1.weight": torch.ones(2)}},
            "holds the key model with 1 tensor but does not fit",
        ),
        (
            {"state_dict": {}, "cfg": fractions.Fraction(1, 2)},
            "holds fractions.Fraction besides the tensors, .* if you trust the file, convert it",
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


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<!doctype html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes them"),
        (b"\x93NUMPY\1\0", "is a NumPy array"),
        (b"\x1f\x8b\x08", "is compressed with gzip; decompress it"),
        (b"BZh91", "is compressed with bzip2"),
        (b"", "is empty; copy the file again"),
        (b"PK\3\4cut", "or it is cut short"),
    ],
)
def test_what_is_no_weights_file_at_all_is_named(
    content: bytes, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ConfigurationError, match=complaint):
        load_pretrained(build(), f"{tmp_path}/w.pth")


@pytest.mark.parametrize("folder", ["", "final/"])
def test_the_folder_of_a_run_leads_to_its_weights(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"are {tmp_path}/final/model.safetensors$"):
        load_pretrained(build(), f"{tmp_path}/{folder}")


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
        r"1 of the wrong shape \(conv1.weight is \[2, 2\], not \[64, 3, 7, 7\]\)",
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
    for name, data in (("w.pt", buffer.getvalue()), ("x.pt", b"nonsense"), ("y.safetensors", b"x")):
        store.put(name, data)
        with pytest.raises(
            ConfigurationError, match="neither safetensors nor a|besides the tensors"
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
    assert "no auxiliary classifiers; they are randomly initialized" in caplog.text


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
    for shape in ([1, 6, 768], [2, 5, 768], [768], [1, 1, 768], [1, 0, 768]):
        state = {**backbone.model.state_dict(), "encoder.pos_embedding": torch.zeros(shape)}
        safetensors.torch.save_file(state, f"{tmp_path}/w.safetensors")
        with pytest.raises(ConfigurationError, match="1 of the wrong shape"):
            load_pretrained(backbone, f"{tmp_path}/w.safetensors")
