"""A plain PyTorch loop with the settings of the hymenoptera job, for comparison; not product.

    python -m bench.reference PHOTOS WEIGHTS VARIANT [--seed N]

PHOTOS is an image folder with train/ and val/, WEIGHTS a safetensors file of efficientnet_b0.
"""

import argparse
from collections.abc import Iterable

import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.models import EfficientNet
from torchvision.transforms import v2

from worker.memory import configure_memory

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_BASE, _DECAY = 1e-3, 0.65
_BLOCKS = 9
VARIANTS = ("frozen", "two-group", "graded", "layer-decay", "gradual", "one-rate", "scratch")


def parameter_groups(model: EfficientNet, variant: str) -> list[dict[str, object]]:
    """The rates, written by hand."""
    blocks = [list(block.parameters()) for block in model.features]
    if variant in ("one-rate", "scratch"):
        return [{"params": list(model.parameters()), "lr": _BASE}]
    scales = {
        "frozen": [0.0] * _BLOCKS,
        "two-group": [0.01] * _BLOCKS,
        "graded": [0.01, 0.05, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01],
        "layer-decay": [_DECAY ** (_BLOCKS - i) for i in range(_BLOCKS)],
        "gradual": [_DECAY ** (_BLOCKS - i) for i in range(_BLOCKS)],
    }[variant]
    return [
        {"params": list(model.classifier.parameters()), "lr": _BASE},
        *({"params": p, "lr": s * _BASE} for p, s in zip(blocks, scales, strict=True) if s),
    ]


def frozen_blocks(variant: str, step: int) -> Iterable[int]:
    """Blocks that do not train at `step`; gradual: from step 4, one more every 2 steps."""
    if variant == "frozen":
        return range(_BLOCKS)
    if variant == "gradual":
        return range(_BLOCKS if step < 4 else max(0, _BLOCKS - 1 - (step - 4) // 2))
    return ()


def accuracy(model: nn.Module, loader: DataLoader[object]) -> float:
    """Top-1 over the whole loader."""
    model.eval()
    right = total = 0
    with torch.inference_mode():
        for images, labels in loader:
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def run(photos: str, weights: str, variant: str, seed: int, epochs: int = 6) -> list[float]:
    """Validation accuracy after each epoch."""
    torch.manual_seed(seed)
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
    bicubic = v2.InterpolationMode.BICUBIC
    train = v2.Compose(
        [v2.RandomResizedCrop(224, interpolation=bicubic), v2.RandomHorizontalFlip(), *to_float]
    )
    val = v2.Compose([v2.Resize(256, interpolation=bicubic), v2.CenterCrop(224), *to_float])
    train_set = datasets.ImageFolder(f"{photos}/train", train)
    loader = DataLoader(train_set, 64, shuffle=True)
    val_loader = DataLoader(datasets.ImageFolder(f"{photos}/val", val), 64)
    model = models.efficientnet_b0()
    if variant != "scratch":
        model.load_state_dict(safetensors.torch.load_file(weights))
    model.classifier[1] = nn.Linear(1280, 2)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(parameter_groups(model, variant), weight_decay=1e-5)
    accuracies = []
    step = 0
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            for number in frozen_blocks(variant, step):
                model.features[number].requires_grad_(requires_grad=False).eval()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            model.requires_grad_(requires_grad=True).train()
        accuracies.append(accuracy(model, val_loader))
    return accuracies


def main() -> None:
    configure_memory(keep_freed=True)  # the allocator only; halves a step's time
    parser = argparse.ArgumentParser()
    parser.add_argument("photos")
    parser.add_argument("weights")
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = run(options.photos, options.weights, options.variant, options.seed)
    print(options.variant, options.seed, " ".join(f"{value:.4f}" for value in results))


if __name__ == "__main__":
    main()
