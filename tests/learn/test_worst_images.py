"""The worst mistakes of all ranks, in order."""

import base64
import io
import json
import math
import re
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.processes import in_fresh_process
from tests.support.stores import open_index
from worker.data.sample_keys import SampleNames
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.learn.worst_images import MAX_KEPT, Mistake, Worst, gather_worst
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.store import open_store


def test_the_worst_of_all_batches_are_kept_in_order() -> None:
    labels = torch.arange(40) % 2
    logits = torch.nn.functional.one_hot(1 - labels, 2) * torch.arange(40)[:, None].float()
    logits[30] = -logits[30]  # right
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    images[38] = 38
    worst = Worst()
    for at in (0, 20):
        part = slice(at, at + 20)
        ids = torch.arange(40)[part]
        worst.add(
            losses=losses[part],
            ids=ids,
            logits=logits[part],
            labels=labels[part],
            images=images[part],
        )
    kept = worst.found()
    assert [mistake.id for mistake in kept] == [n for n in range(39, 0, -1) if n != 30][:MAX_KEPT]
    assert all(mistake.label != mistake.predicted for mistake in kept)
    assert kept[0].confidence == pytest.approx(1)
    assert kept[1].image.unique().tolist() == [38]


def test_fewer_mistakes_than_are_kept_are_all_of_them() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    worst = Worst()
    assert worst.found() == []
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    worst.add(
        losses=torch.tensor([0.3, 1.3, 0.3]),
        ids=torch.tensor([7, 8, 9]),
        logits=logits,
        labels=labels,
        images=images,
    )
    assert [mistake.id for mistake in worst.found()] == [8]


def test_a_mistake_is_kept_with_its_picture_and_place(alone: None, dataset: Path) -> None:
    index = open_index(f"{dataset}/val")
    number = index.shards[0].samples + 1
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    image[0] = 200
    (row,) = gather_worst(
        [Mistake(loss=1.5, id=number, label=0, predicted=1, confidence=0.9, image=image)], str
    )
    assert row["sample"] == str(number)
    named = SampleNames(open_store(f"{dataset}/val"), index)(number)
    assert re.fullmatch(rf"{index.shards[1].name}: sample 1 \(\w+/\w+\)", named)
    picture = Image.open(io.BytesIO(base64.b64decode(row["jpeg"])))
    assert picture.size == (128, 128)
    red, green, _ = picture.getpixel((60, 60))  # type: ignore[misc]
    assert red > 180 > 20 > green


def gather_mistakes(uri: str, folder: Path) -> None:
    """The mistakes of three ranks, of which the last has none."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        own = range(rank.rank, 14, 2) if rank.rank < 2 else ()
        with process_group(rank, listener, StopFlag()):
            mistakes = [
                Mistake(
                    loss=number % 7, id=number, label=0, predicted=1, confidence=0.5, image=image
                )
                for number in own
            ]
            rows = gather_worst(sorted(mistakes, key=lambda m: -m.loss), str)
        (folder / str(rank.rank)).write_text(json.dumps([row["loss"] for row in rows]))

    assert (
        run_ranks(
            one_node(3),
            run,
            StopFlag(),
        )
        == 0
    )


def gather_diverged(folder: Path) -> None:
    """The mistakes of two ranks whose losses are not numbers."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        with process_group(rank, listener, StopFlag()):
            rows = gather_worst(
                [
                    Mistake(loss=math.nan, id=n, label=0, predicted=1, confidence=0.5, image=image)
                    for n in range(rank.rank, 2 * MAX_KEPT, 2)
                ],
                str,
            )
        (folder / str(rank.rank)).write_text(json.dumps([row["sample"] for row in rows]))

    assert run_ranks(one_node(2), run, StopFlag()) == 0


def test_all_ranks_agree_on_the_worst_if_losses_are_not_numbers(tmp_path: Path) -> None:
    """If they did not, one would wait for pictures that another never sends."""
    in_fresh_process(gather_diverged, tmp_path)
    samples = json.loads((tmp_path / "0").read_text())
    assert sorted(map(int, samples)) == list(range(MAX_KEPT))


def test_the_worst_of_all_ranks_come_together(dataset: Path, tmp_path: Path) -> None:
    in_fresh_process(gather_mistakes, f"{dataset}/val", tmp_path)
    losses = sorted([number % 7 for number in range(14)], reverse=True)[:MAX_KEPT]
    assert json.loads((tmp_path / "0").read_text()) == losses
    assert json.loads((tmp_path / "1").read_text()) == []
    assert json.loads((tmp_path / "2").read_text()) == []
