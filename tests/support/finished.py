"""Finished models, without the training."""

import hashlib
from pathlib import Path

import safetensors.torch
import torch

from worker.data.preprocessing import Preprocessing
from worker.layout import CARD_NAME, WEIGHTS_NAME
from worker.model.backbone import build_backbone, preprocessing_of
from worker.model.model_card import Card

SIZE = 32


def finished_model(
    folder: Path,
    classes: tuple[str, ...] = ("blue", "red"),
    *,
    backbone: str = "shufflenet_v2_x0_5",
    temperature: float = 1.0,
    size: int = SIZE,
    not_finite: bool = False,
) -> str:
    """The address of a `final/` with an untrained model, which is nearly as often right as wrong."""
    built = build_backbone(backbone, len(classes), 3, size)
    torch.manual_seed(5)
    # So that images differ in their predictions.
    with torch.no_grad():
        for parameter in built.model.get_submodule(built.head).parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
        for layer in built.model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        built.model.train()(torch.randn(16, 3, size, size))
        if not_finite:
            next(built.model.get_submodule(built.head).parameters()).fill_(torch.nan)
    weights = safetensors.torch.save(built.model.state_dict())
    preprocessing: Preprocessing = preprocessing_of(backbone, "none").at(size)
    card = Card(
        backbone=backbone,
        head=built.head,
        classes=classes,
        preprocessing=preprocessing,
        sha256=hashlib.sha256(weights).hexdigest(),
        metrics={},
        temperature=temperature,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_NAME).write_bytes(weights)
    (folder / CARD_NAME).write_bytes(card.encode())
    return str(folder)
