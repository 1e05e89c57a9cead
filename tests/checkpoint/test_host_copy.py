"""Room for a copy of the state in host memory."""

import pytest
import torch

from bench.learners import batch_of, engine_of, learner_of, manifest_of
from worker.checkpoint.host_copy import HostCopy
from worker.checkpoint.snapshot import room_for_training, take_snapshot
from worker.model.backbone import build_backbone


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("frozen", [False, True])
def test_room_is_enough_and_little_more(
    optimizer: str, ema: float | None, frozen: bool, alone: None
) -> None:
    rest = {"match": "*", "freeze": "always"} if frozen else {"match": "*"}
    train = {"ema": ema} if ema else {}
    manifest = manifest_of([{"match": "head"}, rest], train, name=optimizer)
    backbone = build_backbone("mobilenet_v3_small", 2, 0, 32)
    learner = learner_of(backbone, manifest)
    engine_of(backbone, learner, manifest).step(0, batch_of(2, 32, 2), 2)
    room = room_for_training(learner.model, learner.groups, manifest)
    host = HostCopy(room)
    snapshot = take_snapshot(learner, host, {})
    written = sum(part.size for part in snapshot.parts(host).values())
    assert host._filled <= room < 1.05 * written


def test_copies_keep_their_places_and_layouts() -> None:
    host = HostCopy(1 << 16)
    images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    first = host.take({"images": images, "count": torch.tensor(7)})
    second = host.take({"images": images + 1, "count": torch.tensor(8)})
    assert first == second
    copy = host.at(second["images"])
    assert torch.equal(copy, images + 1)
    assert copy.is_contiguous(memory_format=torch.channels_last)
    assert host.at(second["count"]).item() == 8
