"""A plain PyTorch loop with the settings of the hymenoptera job, for comparison; not product.

    python -m tests.reference PHOTOS WEIGHTS [--variant graded|frozen|scratch] [--seed N]

PHOTOS is an image folder with train/ and val/, WEIGHTS a safetensors file of efficientnet_b0.
"""

import argparse

import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.models import EfficientNet
from torchvision.transforms import v2

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def parameter_groups(model: EfficientNet, variant: str, base: float) -> list[dict[str, object]]:
    """The three multipliers, written by hand: 0.05, 0.1, 1 and 0.01 for the rest."""
    if variant == "scratch":
        return [{"params": list(model.parameters()), "lr": base}]
    features, classifier = model.features, model.classifier
    if variant == "frozen":
        features.requires_grad_(False)
        return [{"params": list(classifier.parameters()), "lr": base}]
    rest = [p for i in (0, 4, 5, 6, 7, 8) for p in features[i].parameters()]
    return [
        {"params": list(features[1].parameters()), "lr": 0.05 * base},
        {"params": [*features[2].parameters(), *features[3].parameters()], "lr": 0.1 * base},
        {"params": list(classifier.parameters()), "lr": base},
        {"params": rest, "lr": 0.01 * base},
    ]


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
    optimizer = torch.optim.Adam(parameter_groups(model, variant, 1e-3), weight_decay=1e-5)
    accuracies = []
    for _ in range(epochs):
        model.train()
        if variant == "frozen":
            model.features.eval()
        for images, labels in loader:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        accuracies.append(accuracy(model, val_loader))
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos")
    parser.add_argument("weights")
    parser.add_argument("--variant", default="graded", choices=["graded", "frozen", "scratch"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = run(options.photos, options.weights, options.variant, options.seed)
    print(options.variant, options.seed, " ".join(f"{value:.4f}" for value in results))


if __name__ == "__main__":
    main()
