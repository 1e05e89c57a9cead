"""The training scripts of timm and torchvision as contenders of `bench.train`."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_TIMM_NAMES = {"mobilenet_v3_small": "mobilenetv3_small_100", "vit_b_16": "vit_base_patch16_224"}
EPOCHS = 2
CLASSES = 100


@dataclass(frozen=True)
class Contender:
    """A command, and how a line of its output tells the step, and the epoch if steps count anew.

    None for ours, which keeps a history.
    """

    command: list[str]
    progress: re.Pattern[str] | None


@dataclass(frozen=True)
class Plan:
    """Return what all contenders train, on the data below `folder`."""

    folder: Path
    backbone: str
    side: int
    batch: int
    images: int
    cores: int

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self.images // self.batch


def timm_command(plan: Plan, checkout: Path) -> list[str]:
    """timm's script, from a checkout of pytorch-image-models."""
    cuda = torch.cuda.is_available()
    sizes = {
        "--data-dir": plan.folder,
        "--model": _TIMM_NAMES.get(plan.backbone, plan.backbone),
        "--num-classes": CLASSES,
        "--batch-size": plan.batch,
        "--workers": plan.cores,
        "--epochs": EPOCHS,
        "--log-interval": 8 if cuda else 1,
        "--opt": "adamw",
        "--lr": 1e-3,
        "--warmup-epochs": 0,
        "--color-jitter": 0,
        "--device": "cuda" if cuda else "cpu",
        "--output": plan.folder / "timm",
    }
    names = [str(part) for pair in sizes.items() for part in pair]
    names += ["--input-size", "3", str(plan.side), str(plan.side), "--channels-last"]
    names += ["--amp", "--amp-dtype", "bfloat16"] if cuda else []
    return [sys.executable, "-u", str(checkout / "train.py"), *names]


def torchvision_command(plan: Plan, folder: Path) -> list[str]:
    """torchvision's script, from its folder references/classification."""
    cuda = torch.cuda.is_available()
    sizes = {
        "--data-path": plan.folder,
        "--model": plan.backbone,
        "--batch-size": plan.batch,
        "--workers": plan.cores,
        "--epochs": EPOCHS,
        "--print-freq": 8 if cuda else 1,
        "--opt": "adamw",
        "--lr": 1e-3,
        "--train-crop-size": plan.side,
        "--device": "cuda" if cuda else "cpu",
        "--output-dir": plan.folder,
    }
    names = [str(part) for pair in sizes.items() for part in pair]
    return [sys.executable, "-u", str(folder / "train.py"), *names, *(["--amp"] if cuda else [])]
