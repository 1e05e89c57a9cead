"""Backbones with small heads."""

from worker.model.backbone import Backbone, build_backbone


def build(name: str = "resnet18", classes: int = 2, seed: int = 0, side: int = 64) -> Backbone:
    return build_backbone(name, classes, seed, side)
