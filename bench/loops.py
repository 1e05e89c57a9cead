"""Training loops of others, each in a process of its own; `python -m bench.loops --help`.

`bare` trains on one batch that stays on the device: nothing is read. `pil` is the loop of most
tutorials: `ImageFolder`, PIL, `DataLoader`. Both print `step N/M` after each step.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision import transforms as T

_CLASSES = 100


def main() -> None:
    """Train with the loop that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=["bare", "pil"])
    parser.add_argument("folder", type=Path, help="the folder of class folders")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=32, help="steps per epoch")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = models.get_model(options.backbone, weights=None, num_classes=_CLASSES)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    if options.loop == "bare":
        images = torch.randn(options.batch, 3, options.side, options.side, device=device)
        batch = images, torch.arange(options.batch, device=device) % _CLASSES
        epochs: list[Iterable[tuple[Tensor, Tensor]]] = [[batch] * options.steps] * options.epochs
    else:
        loader = _pil(options.folder, options.side, options.batch, options.workers)
        epochs = [loader] * options.epochs
    step, steps = 0, options.steps * options.epochs
    for batches in epochs:
        for images, labels in batches:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                outputs = model(images)
            loss = F.cross_entropy(outputs.float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % 8 == 0 or device.type == "cpu":
                print(f"step {step}/{steps}  loss {loss.item():.3f}", flush=True)


def _pil(folder: Path, side: int, batch: int, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    normalize = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = T.Compose(
        [T.RandomResizedCrop(side), T.RandomHorizontalFlip(), T.ToTensor(), normalize]
    )
    data = datasets.ImageFolder(str(folder), transform)
    cuda = torch.cuda.is_available()
    return DataLoader(
        data, batch, shuffle=True, num_workers=workers, drop_last=True, pin_memory=cuda
    )


if __name__ == "__main__":
    main()
