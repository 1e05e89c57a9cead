"""The optimiser step over ranks: the mean over the global batch, however it is divided."""

import socket
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from worker.data.decode import Preprocessing

from tests.conftest import in_fresh_process
from worker.data.loader import Batch
from worker.data.plan import split
from worker.launch.spawn import run_ranks
from worker.launch.topology import Spawn
from worker.train.distributed import process_group
from worker.train.engine import Engine
from worker.train.rank import Rank
from worker.train.stop import StopFlag

PREPROCESSING = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), InterpolationMode.BILINEAR)
SIZES = [12, 7, 3, 1]  # one with three ranks: parts of 1, 0 and 0


def batch(step: int, rank: int, world_size: int) -> Batch:
    torch.manual_seed(step)
    images = torch.randint(0, 256, (SIZES[step], 3, 8, 8), dtype=torch.uint8)
    start, stop = split(SIZES[step], rank, world_size)
    part = slice(start, stop)
    ids = torch.arange(SIZES[step])
    return Batch(images[part], (ids % 2)[part], ids[part].numpy())


def train(world_size: int, folder: Path) -> None:
    """Take every step on `world_size` ranks, each of which saves what it ends with."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with process_group(rank, listener, StopFlag()):
            engine = Engine(
                model, optimizer, PREPROCESSING, torch.device("cpu"), 0, rank.rank, world_size
            )
            sums = [
                engine.step(step, batch(step, rank.rank, world_size), size)
                for step, size in enumerate(SIZES)
            ]
            parts = [batch(0, rank.rank, world_size), batch(1, rank.rank, world_size)]
            evaluation = engine.evaluate(parts, 2, lambda: False)
        assert evaluation
        found = (model.state_dict(), torch.stack(sums), torch.tensor(evaluation.confusion))
        torch.save(found, folder / f"{world_size}-{rank.rank}.pt")

    assert run_ranks(Spawn(0, 1, world_size, "localhost", 0), run, StopFlag()) == 0


def results(world_size: int, folder: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights after all steps, and the losses and right answers summed over ranks."""
    in_fresh_process(train, world_size, folder)
    loaded = [torch.load(folder / f"{world_size}-{rank}.pt") for rank in range(world_size)]
    for weights, _, confusion in loaded:
        assert torch.equal(confusion, loaded[0][2])
        assert int(confusion.sum()) == SIZES[0] + SIZES[1]
        for name, tensor in weights.items():
            assert torch.equal(tensor, loaded[0][0][name]), name
    return loaded[0][0], torch.stack([sums for _, sums, _ in loaded]).sum(0)


@pytest.mark.parametrize("world_size", [2, 3])
def test_uneven_parts_give_the_step_of_the_global_batch(world_size: int, tmp_path: Path) -> None:
    alone, sums = results(1, tmp_path)
    together, sums_together = results(world_size, tmp_path)
    assert torch.allclose(sums, sums_together, atol=1e-4)
    for name, tensor in alone.items():
        assert torch.allclose(tensor, together[name], atol=1e-5), name


def train_on_one_image() -> None:
    def run(rank: Rank, listener: socket.socket | None) -> None:
        model = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)
        )
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with process_group(rank, listener, StopFlag()):
            engine = Engine(model, optimizer, PREPROCESSING, torch.device("cpu"), 0, 0, 1)
            loss, _ = engine.step(3, batch(3, 0, 1), 1).tolist()
        assert 0 < loss < 10

    assert run_ranks(Spawn(0, 1, 1, "localhost", 0), run, StopFlag()) == 0


def test_one_image_of_one_pixel_does_not_stop_batch_norm() -> None:
    """Where a rank is left with one image, BatchNorm on 1x1 features would refuse to train."""
    in_fresh_process(train_on_one_image)
