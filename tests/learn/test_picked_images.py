"""The worst mistakes of all ranks, in order."""

import base64
import io
import json
import math
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.processes import in_fresh_process
from tests.support.stores import open_index
from worker.data.sample_keys import SampleNames
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.learn.picked_images import (
    MAX_PICTURES,
    SUSPECTS,
    UNSURE,
    WRONG,
    Pick,
    Picker,
    gather_picks,
)
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.store import open_store


def picked(logits: torch.Tensor, labels: torch.Tensor, size: int = 20) -> dict[str, list[Pick]]:
    """What is picked of images of which each is as bright as its id."""
    picker = Picker()
    for at in range(0, len(labels), size):
        ids = torch.arange(at, min(len(labels), at + size))
        images = ids.byte()[:, None, None, None].expand(-1, 3, 8, 8)
        picker.add(logits=logits[ids], ids=ids, labels=labels[ids], images=images)
    return picker.found()


def test_the_most_wrong_of_all_batches_are_kept_in_order() -> None:
    labels = torch.arange(40) % 2
    logits = torch.nn.functional.one_hot(1 - labels, 2) * torch.arange(40)[:, None].float()
    logits[30] = -logits[30]  # right
    kept = picked(logits, labels)[WRONG]
    wrong = [n for n in range(39, 0, -1) if n != 30]
    assert [pick.id for pick in kept] == wrong[:MAX_PICTURES]
    assert all(pick.label != pick.predicted for pick in kept)
    assert kept[0].confidence == pytest.approx(1)
    assert kept[1].image is not None
    assert kept[1].image.unique().tolist() == [38]


def test_fewer_mistakes_than_are_kept_are_all_of_them() -> None:
    assert Picker().found() == {WRONG: [], UNSURE: [], SUSPECTS: []}
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert [pick.id for pick in picked(logits, torch.zeros(3).long())[WRONG]] == [1]


def test_the_least_sure_are_those_whose_two_best_classes_are_closest() -> None:
    logits = torch.tensor([[4.0, 0, 0], [1.0, 0.9, 0], [2.0, 1.5, 1.4], [0.0, 0.0, -9]])
    found = picked(logits, torch.tensor([0, 1, 0, 0]))[UNSURE]
    assert [pick.id for pick in found] == [3, 1, 2, 0]


def test_a_label_is_suspected_if_the_model_is_confident_of_another_class() -> None:
    logits = torch.tensor([[5.0, 0], [5.0, 0], [1.0, 0], [9.0, 0]])
    found = picked(logits, torch.tensor([1, 0, 1, 1]))[SUSPECTS]
    assert [(pick.id, pick.label, pick.predicted) for pick in found] == [(3, 1, 0), (0, 1, 0)]
    assert found[0].image is None


def test_a_mistake_is_kept_with_its_picture_and_place(alone: None, dataset: Path) -> None:
    index = open_index(f"{dataset}/val")
    number = index.shards[0].samples + 1
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    image[0] = 200
    (row,) = gathered(
        [Pick(score=1.5, id=number, label=0, predicted=1, confidence=0.9, image=image)]
    )
    assert row["sample"] == str(number)
    named = SampleNames(open_store(f"{dataset}/val"), index)(number)
    assert re.fullmatch(rf"{index.shards[1].name}: sample 1 \(\w+/\w+\)", named)
    picture = Image.open(io.BytesIO(base64.b64decode(row["jpeg"])))
    assert picture.size == (128, 128)
    red, green, _ = picture.getpixel((60, 60))  # type: ignore[misc]
    assert red > 180 > 20 > green


def gathered(picks: list[Pick]) -> list[dict[str, Any]]:
    return gather_picks({WRONG: picks}, str)[WRONG]


def gather_mistakes(uri: str, folder: Path) -> None:
    """The mistakes of three ranks, of which the last has none."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        own = range(rank.rank, 40, 2) if rank.rank < 2 else ()
        with process_group(rank, listener, StopFlag()):
            picks = [
                Pick(score=number % 7, id=number, label=0, predicted=1, confidence=0.5, image=image)
                for number in own
            ]
            rows = gathered(sorted(picks, key=lambda pick: -pick.score))
        (folder / str(rank.rank)).write_text(json.dumps([row["score"] for row in rows]))

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
            rows = gathered(
                [
                    Pick(score=math.nan, id=n, label=0, predicted=1, confidence=0.5, image=image)
                    for n in range(rank.rank, 2 * MAX_PICTURES, 2)
                ]
            )
        (folder / str(rank.rank)).write_text(json.dumps([row["sample"] for row in rows]))

    assert run_ranks(one_node(2), run, StopFlag()) == 0


def test_all_ranks_agree_on_the_worst_if_losses_are_not_numbers(tmp_path: Path) -> None:
    """If they did not, one would wait for pictures that another never sends."""
    in_fresh_process(gather_diverged, tmp_path)
    samples = json.loads((tmp_path / "0").read_text())
    assert sorted(map(int, samples)) == list(range(MAX_PICTURES))


def test_the_worst_of_all_ranks_come_together(dataset: Path, tmp_path: Path) -> None:
    in_fresh_process(gather_mistakes, f"{dataset}/val", tmp_path)
    losses = sorted([number % 7 for number in range(40)], reverse=True)[:MAX_PICTURES]
    assert json.loads((tmp_path / "0").read_text()) == losses
    assert json.loads((tmp_path / "1").read_text()) == []
    assert json.loads((tmp_path / "2").read_text()) == []
