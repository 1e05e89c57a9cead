"""The optimiser step over ranks: the mean over the global batch, however it is divided."""

import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from tests.conftest import in_fresh_process
from worker.data.loader import Batch
from worker.data.mix import Blend
from worker.data.plan import split
from worker.data.preprocessing import Preprocessing
from worker.launch.spawn import run_ranks
from worker.launch.topology import Spawn
from worker.train.distributed import process_group
from worker.train.engine import Engine
from worker.train.rank import Rank
from worker.train.stop import StopFlag

PREPROCESSING = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), InterpolationMode.BILINEAR)
SIZES = [12, 7, 3, 1]  # one with three ranks: parts of 1, 0 and 0
CLASSES = 7
HOLES = {(0, 5), (1, 0), (2, 1)}  # (step, place) of bad samples


def batch(step: int, rank: int, world_size: int, led: bool = False) -> Batch:
    torch.manual_seed(step)
    images = torch.randint(0, 256, (SIZES[step], 3, 8, 8), dtype=torch.uint8)
    start, stop = split(SIZES[step], rank, world_size)
    places = torch.arange(start - (led and start < stop), stop) % SIZES[step]
    valid = torch.tensor([(step, place) not in HOLES for place in places.tolist()])
    return Batch(images[places], places % CLASSES, places.numpy(), valid.bool())


def blend(step: int) -> Blend:
    return Blend(0.3, None) if step % 2 else Blend(0.75, (2, 1, 4, 4))


def train(world_size: int, folder: Path, blended: bool) -> None:
    """Take every step on `world_size` ranks, each of which saves what it ends with."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with process_group(rank, listener, StopFlag()):
            engine = Engine(
                model, optimizer, PREPROCESSING, torch.device("cpu"), 0, rank.rank, world_size
            )
            sums = [
                engine.step(
                    step,
                    batch(step, rank.rank, world_size, blended),
                    size,
                    blend(step) if blended else None,
                )
                for step, size in enumerate(SIZES)
            ]
            parts = [batch(step, rank.rank, world_size) for step in (0, 1)]
            result = engine.evaluate(parts, CLASSES, lambda: False)
        assert result
        evaluation, confusion = result
        found = {
            "weights": model.state_dict(),
            "sums": torch.stack(sums),
            "confusion": torch.from_numpy(confusion),
            "evaluation": asdict(evaluation),
        }
        torch.save(found, folder / f"{world_size}-{rank.rank}.pt")

    assert run_ranks(Spawn(0, 1, world_size, "localhost", 0), run, StopFlag()) == 0


def results(world_size: int, folder: Path, blended: bool = False) -> dict[str, Any]:
    """What rank 0 ends with, like all others, and the sums over ranks."""
    in_fresh_process(train, world_size, folder, blended)
    loaded = [torch.load(folder / f"{world_size}-{rank}.pt") for rank in range(world_size)]
    for found in loaded:
        assert torch.equal(found["confusion"], loaded[0]["confusion"])
        assert found["evaluation"] == loaded[0]["evaluation"]
        for name, tensor in found["weights"].items():
            assert torch.equal(tensor, loaded[0]["weights"][name]), name
    sums = torch.stack([found["sums"] for found in loaded]).sum(0)
    return {**loaded[0], "sums": sums}


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_uneven_parts_give_the_step_of_the_global_batch(
    world_size: int, blended: bool, tmp_path: Path
) -> None:
    alone = results(1, tmp_path, blended)
    together = results(world_size, tmp_path, blended)
    assert torch.allclose(alone["sums"], together["sums"], atol=1e-4)
    assert alone["sums"][:, 2].tolist() == [11, 6, 2, 1]
    for name, tensor in alone["weights"].items():
        assert torch.allclose(tensor, together["weights"][name], atol=1e-5), name


def test_evaluation_counts_each_sound_image_once(tmp_path: Path) -> None:
    one, three = results(1, tmp_path), results(3, tmp_path)
    assert torch.equal(one["confusion"], three["confusion"])
    assert int(one["confusion"].sum()) == SIZES[0] + SIZES[1] - 2
    for name in ("accuracy", "top5_accuracy", "per_class"):
        assert one["evaluation"][name] == three["evaluation"][name]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    model.load_state_dict(one["weights"])
    batches = [batch(step, 0, 1) for step in (0, 1)]
    images = torch.cat([part.images[part.valid] for part in batches])
    labels = torch.cat([part.labels[part.valid] for part in batches])
    outputs = model(PREPROCESSING.normalise(images))
    right = outputs.argmax(1) == labels
    assert one["evaluation"]["accuracy"] == right.double().mean().item()
    top5 = (outputs.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    assert one["evaluation"]["top5_accuracy"] == top5 > right.double().mean().item()
    for label, accuracy in enumerate(one["evaluation"]["per_class"]):
        assert accuracy == pytest.approx(right[labels == label].double().mean().item())
    loss = nn.functional.cross_entropy(outputs, labels).item()
    assert one["evaluation"]["loss"] == pytest.approx(loss)


def test_a_blend_takes_pixels_and_label_from_the_image_before(tmp_path: Path) -> None:
    """Against the definition, on the first step, where image 5 is a hole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    part = batch(0, 0, 1)
    images, labels = PREPROCESSING.normalise(part.images), part.labels
    before, labels_before = images.roll(1, 0), labels.roll(1, 0)
    before[6], labels_before[6] = images[6], labels[6]
    mixed = images.clone()
    mixed[:, :, 2:6, 1:5] = before[:, :, 2:6, 1:5]
    outputs = model(mixed)[part.valid]
    own, other = (
        nn.functional.cross_entropy(outputs, x[part.valid], reduction="sum").item()
        for x in (labels, labels_before)
    )
    loss = results(1, tmp_path, True)["sums"][0, 0].item()
    assert loss == pytest.approx(0.75 * own + 0.25 * other, rel=1e-5)


def train_on_one_image() -> None:
    def run(rank: Rank, listener: socket.socket | None) -> None:
        model = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)
        )
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with process_group(rank, listener, StopFlag()):
            engine = Engine(model, optimizer, PREPROCESSING, torch.device("cpu"), 0, 0, 1)
            loss, _, _ = engine.step(3, batch(3, 0, 1), 1).tolist()
        assert 0 < loss < 10

    assert run_ranks(Spawn(0, 1, 1, "localhost", 0), run, StopFlag()) == 0


def test_one_image_of_one_pixel_does_not_stop_batch_norm() -> None:
    """Where a rank is left with one image, BatchNorm on 1x1 features would refuse to train."""
    in_fresh_process(train_on_one_image)
