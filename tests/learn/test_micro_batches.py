"""Last batches and micro-batches give batch norm no single image."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.learners import ALONE, everything, manifest_of
from tests.support.processes import in_fresh_process
from worker.data.epoch_plan import split
from worker.data.loader import Batch
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.learn.loss import Criterion
from worker.learn.micro_batches import Passes
from worker.learn.training_step import Engine
from worker.model.backbone import build_backbone, preprocessing_of
from worker.model.learner import build_learner
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag

FULL, SIDE, FULL_STEPS = 12, 32, 3


PREPROCESSING = preprocessing_of("resnet18").at(SIDE)


def pictures(step: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise in which one color is brighter, by class; one picture is of one color all over."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 120, (count, 3, SIDE, SIDE), generator=generator)
    labels = torch.arange(count) % 2
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label] += 100
    images[0] = 90
    return images.byte(), labels


def part(step: int, count: int, rank: Rank) -> Batch:
    """A rank's part of a batch."""
    images, labels = pictures(step, count)
    own = slice(*split(count, rank.rank, rank.world_size))
    ids = np.arange(count)[own]
    return Batch(
        images=images[own],
        labels=labels[own],
        ids=ids,
        valid=torch.ones(len(ids), dtype=torch.bool),
    )


def moved(before: dict[str, torch.Tensor], model: nn.Module) -> float:
    """How far a step has moved the weights."""
    parts = [(p.detach() - before[name]).norm() for name, p in model.named_parameters()]
    return float(torch.stack(parts).norm())


def train(world_size: int, count: int, micro_batch: int | None, folder: Path) -> None:
    """Full batches and then a batch of `count`; saves how far each step moves the weights."""
    settings: dict[str, Any] = {"batch_size": FULL, "micro_batch": micro_batch}
    manifest = manifest_of([{"match": "*"}], settings, name="sgd", momentum=0.0)

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        model = build_backbone("resnet18", 2, 0, SIDE).model
        learner = build_learner(model, everything(model, 1e-2), manifest, torch.device("cpu"))
        with process_group(rank, listener, StopFlag()):
            engine = Engine(
                learner,
                PREPROCESSING,
                Criterion(),
                train=manifest.train,
                clip_norm=None,
                rank=rank,
                full_batch=FULL,
            )
            distances = []
            for step, size in enumerate([FULL] * FULL_STEPS + [count]):
                before = {name: p.detach().clone() for name, p in model.named_parameters()}
                statistics = model.get_buffer("bn1.running_mean").clone()
                engine.step(step, part(step, size, rank), size)
                distances.append(moved(before, model))
            passes = Passes(
                full_batch=FULL, world_size=world_size, micro_batch=micro_batch, synchronized=False
            )
            few = not passes.give_statistics(len(part(0, count, rank).labels), count)
            if few and rank.rank == 0:  # whose statistics are those of all
                assert torch.equal(statistics, model.get_buffer("bn1.running_mean"))
        if rank.rank == 0:
            torch.save(distances, folder / "distances.pt")

    assert (
        run_ranks(
            one_node(world_size),
            run,
            StopFlag(),
        )
        == 0
    )


@pytest.mark.parametrize(
    ("world_size", "micro_batch", "count"),
    [(1, None, 1), (1, None, 3), (2, None, 1), (2, None, 3), (3, None, 2), (1, 5, 1)],
)
def test_an_image_left_over_moves_the_weights_no_more_than_one_of_a_full_batch(
    world_size: int, micro_batch: int | None, count: int, tmp_path: Path
) -> None:
    in_fresh_process(train, world_size, count, micro_batch, tmp_path)
    *full, last = torch.load(tmp_path / "distances.pt")
    assert 0 < last <= count / FULL * max(full)


@given(st.integers(1, 200), st.integers(1, 9), st.none() | st.integers(1, 30), st.data())
def test_with_synchronized_statistics_all_ranks_do_the_same(
    full: int, world_size: int, micro_batch: int | None, data: st.DataObject
) -> None:
    """However few images a rank has, and however many of them are bad."""
    passes = Passes(
        full_batch=full, world_size=world_size, micro_batch=micro_batch, synchronized=True
    )
    count = data.draw(st.integers(1, full))
    found = set()
    for rank in range(world_size):
        first, stop = split(count, rank, world_size)
        sound = data.draw(st.integers(0, stop - first))
        number = passes.count(sound, count)
        found.add((number, passes.give_statistics(sound // number, count)))
        # No picture that only fills up gets into the statistics of all.
        if passes.give_statistics(sound // number, count):
            assert stop - first >= number
    assert len(found) == 1
    assert passes.give_statistics(0, full) or passes.usual == 0


@given(st.integers(1, 200), st.none() | st.integers(1, 30))
def test_a_full_batch_gives_statistics_in_each_of_its_passes(
    full: int, micro_batch: int | None
) -> None:
    passes = Passes(full_batch=full, world_size=1, micro_batch=micro_batch, synchronized=False)
    number = passes.count(full, full)
    for part in torch.arange(full).tensor_split(number):
        assert len(part) <= (micro_batch or full)
        assert passes.give_statistics(len(part), full)


def test_an_auxiliary_head_may_see_one_value_of_one_image(alone: None) -> None:
    """It runs in training only, as Inception's does, on features of one pixel."""
    manifest = manifest_of([{"match": "*"}], {"batch_size": 1})
    model = build_backbone("inception_v3", 2, 0, 299).model
    learner = build_learner(model, everything(model, 1e-3), manifest, torch.device("cpu"))
    preprocessing = preprocessing_of("inception_v3")
    engine = Engine(
        learner,
        preprocessing,
        Criterion(),
        train=manifest.train,
        clip_norm=None,
        rank=ALONE,
        full_batch=1,
    )
    images = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    one = Batch(
        images=images,
        labels=torch.zeros(1).long(),
        ids=np.zeros(1, np.int64),
        valid=torch.ones(1).bool(),
    )
    assert engine.step(0, one, 1).finite
