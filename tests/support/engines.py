"""Engines of any number of ranks on noise of many sizes."""

import socket
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from bench.learners import manifest_of, rate_group
from tests.support.processes import in_fresh_process
from worker.data.epoch_plan import split
from worker.data.loader import Batch
from worker.data.mixup import Blend
from worker.data.preprocessing import Preprocessing
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.learn.evaluation import Findings, evaluate
from worker.learn.loss import Criterion
from worker.learn.training_step import Engine
from worker.manifest import Manifest
from worker.model.learner import Learner, build_learner
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag

PREPROCESSING = Preprocessing(
    crop_size=8,
    resize_size=8,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    interpolation=InterpolationMode.BILINEAR,
)


SIZES = [12, 7, 3, 1]  # one with three ranks: parts of 1, 0 and 0


CLASSES = 7


PLAIN = manifest_of([{"match": "*"}])


HOLES = {(0, 5), (1, 0), (2, 1)}  # (step, place) of bad samples


def batch(step: int, rank: int, world_size: int, *, led: bool = False) -> Batch:
    torch.manual_seed(step)
    images = torch.randint(0, 256, (SIZES[step], 3, 8, 8), dtype=torch.uint8)
    start, stop = split(SIZES[step], rank, world_size)
    places = torch.arange(start - (led and start < stop), stop) % SIZES[step]
    valid = torch.tensor([(step, place) not in HOLES for place in places.tolist()])
    return Batch(
        images=images[places], labels=places % CLASSES, ids=places.numpy(), valid=valid.bool()
    )


def blend(step: int) -> Blend:
    return Blend(0.3, None) if step % 2 else Blend(0.75, (2, 1, 4, 4))


def learner_for(model: nn.Module, settings: Manifest, release: int = 0) -> Learner:
    """A learner of which all but the last layer is released at this step."""
    names = [name for name, _ in model.named_parameters()]
    groups = (
        rate_group("body", 1e-2, *names[:-2], release=release),
        rate_group("head", 1e-2, *names[-2:]),
    )
    return build_learner(model, groups, settings, torch.device("cpu"))


def evaluation_of(learner: Learner, batches: list[Batch]) -> Findings:
    found = evaluate(
        learner.result,
        batches,
        precision=learner.precision,
        preprocessing=PREPROCESSING,
        classes=CLASSES,
        samples=max(SIZES),
        stopped=lambda: False,
    )
    assert found
    return found


def engine_for(learner: Learner, rank: Rank, settings: Manifest) -> Engine:
    criterion = Criterion(settings.train.label_smoothing)
    clip_norm = settings.optimizer.clip_norm
    return Engine(
        learner,
        PREPROCESSING,
        criterion,
        train=settings.train,
        clip_norm=clip_norm,
        rank=rank,
        full_batch=max(SIZES),
    )


def train(world_size: int, folder: Path, blended: bool, settings: Manifest) -> None:
    """Take every step on `world_size` ranks, each of which saves what it ends with."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
        with process_group(rank, listener, StopFlag()):
            learner = learner_for(model, settings)
            engine = engine_for(learner, rank, settings)
            sums = [
                engine.step(
                    step,
                    batch(step, rank.rank, world_size, led=blended),
                    size,
                    blend(step) if blended else None,
                ).sums
                for step, size in enumerate(SIZES)
            ]
            parts = [batch(step, rank.rank, world_size) for step in (0, 1)]
            findings = evaluation_of(learner, parts)
        tally = findings.tally
        found = {
            "weights": model.state_dict(),
            "sums": torch.stack(sums),
            "confusion": torch.from_numpy(tally.rows) if rank.rank == 0 else None,
            "tally": [tally.histograms, tally.reliability, tally.sums, findings.outcomes],
        }
        torch.save(found, folder / f"{world_size}-{rank.rank}.pt")

    assert (
        run_ranks(
            one_node(world_size),
            run,
            StopFlag(),
        )
        == 0
    )


def results(
    world_size: int, folder: Path, *, blended: bool = False, settings: Manifest = PLAIN
) -> dict[str, Any]:
    """What rank 0 ends with, like all others, and the sums over ranks."""
    in_fresh_process(train, world_size, folder, blended, settings)
    loaded = [
        torch.load(folder / f"{world_size}-{rank}.pt", weights_only=False)
        for rank in range(world_size)
    ]
    for found in loaded:
        for part, first in zip(found["tally"], loaded[0]["tally"], strict=True):
            assert numpy.array_equal(part, first)
        for name, tensor in found["weights"].items():
            assert torch.equal(tensor, loaded[0]["weights"][name]), name
    sums = torch.stack([found["sums"] for found in loaded]).sum(0)
    return {**loaded[0], "sums": sums}


class Small(nn.Module):
    """A model whose memory holds a few images at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.most = most
        self.norm: nn.Module = nn.BatchNorm2d(3)
        self.head = nn.Linear(192, CLASSES)
        self.seen: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        self.seen.append(len(images))
        return self.head(self.norm(images).flatten(1))
