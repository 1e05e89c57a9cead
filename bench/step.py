"""The cost of a training step beside the model: the engine next to a bare loop, in turns.

python -m bench.step [--images 64] [--rounds 200]

The model is 53 convolutions with BatchNorm, as many as ResNet-50 has, of a single pixel, so that
the model itself costs little and what surrounds it can be seen.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode

from bench.learners import ALONE, CPU, Waits, batch_of, everything, manifest_of
from worker.data.preprocessing import Preprocessing
from worker.learn.loss import Criterion
from worker.learn.training_step import Engine
from worker.manifest import Manifest
from worker.memory import configure_memory
from worker.model.learner import build_learner
from worker.ranks.agreement import Agreement, Signals

_LAYERS, _WIDTH, _CLASSES, _SIDE = 53, 16, 100, 8
_PREPROCESSING = Preprocessing(
    crop_size=_SIDE,
    resize_size=_SIDE,
    mean=(0.5,) * 3,
    std=(0.2,) * 3,
    interpolation=InterpolationMode.BILINEAR,
)


class Tall(nn.Module):
    """Many layers of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _WIDTH, _SIDE)
        self.body = nn.Sequential(
            *(
                layer
                for _ in range(_LAYERS)
                for layer in (nn.Conv2d(_WIDTH, _WIDTH, 1, bias=False), nn.BatchNorm2d(_WIDTH))
            )
        )
        self.head = nn.Linear(_WIDTH, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, [N, classes]."""
        logits: Tensor = self.head(self.body(self.stem(images)).flatten(1))
        return logits


def bare(images: int) -> Callable[[int], None]:
    """A step without anything around it."""
    model = Tall().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    inputs = torch.randn(images, 3, _SIDE, _SIDE).to(memory_format=torch.channels_last)
    labels = torch.arange(images) % _CLASSES

    def step(_: int) -> None:
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ours(images: int, manifest: Manifest) -> Callable[[int], None]:
    """The stages of a step as training takes them, with what ranks agree on beside it."""
    engine = _engine(manifest)
    batch = batch_of(images, _SIDE, _CLASSES)
    agreement = Agreement(CPU)

    def step(number: int) -> None:
        agreement.propose(Signals())
        engine.launch(number, batch, images)
        agreement.result()
        engine.settle()
        engine.update()

    return step


def waits(images: int, manifest: Manifest) -> int:
    """Count the waits for a GPU while a step is queued; `settle` waits once."""
    engine, batch = _engine(manifest), batch_of(images, _SIDE, _CLASSES)
    engine._decides_on_device = True
    for number in range(3):
        with Waits() as found:
            engine.launch(number, batch, images)
        engine.settle()
        with found:
            engine.update()
    return len(found.names)


def _engine(manifest: Manifest) -> Engine:
    model = Tall()
    learner = build_learner(model, everything(model, 1e-3), manifest, CPU)
    return Engine(
        learner,
        _PREPROCESSING,
        Criterion(),
        train=manifest.train,
        clip_norm=manifest.optimizer.clip_norm,
        rank=ALONE,
        full_batch=manifest.train.batch_size,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    configure_memory(keep_freed=True)  # as `worker train` does
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    groups = [{"match": "*"}]
    manifests = {
        "engine": manifest_of(groups, name="adamw"),
        "with ema and clipping": manifest_of(groups, {"ema": 0.99}, name="adamw", clip_norm=1.0),
    }
    steps = {name: ours(options.images, manifest) for name, manifest in manifests.items()}
    steps["bare loop"] = bare(options.images)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds):
        for name, step in steps.items():
            began = time.thread_time()
            step(number)
            times[name].append(time.thread_time() - began)
    least = statistics.median(times["bare loop"][10:])
    for name in steps:
        median = statistics.median(times[name][10:])
        more = (median - least) * 1e3
        line = f"{name:<22} {median * 1e3:6.2f} ms  {more:+.2f} ms"
        if name in manifests:
            # One number is read of the batch's mask, which lies on the host.
            line += f"  waits for a GPU while queuing: {waits(options.images, manifests[name]) - 1}"
        print(line)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
