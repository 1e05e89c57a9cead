"""All ranks get what rank 0 has."""

import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.learners import everything, manifest_of
from tests.support.processes import in_fresh_process
from tests.support.snapshots import snapshot_of
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.model.learner import Learner, build_learner
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.train.broadcast_state import share_learner


def trained_learner(rank: int, name: str) -> Learner:
    """A learner whose tensors differ from rank to rank; only rank 0's has been trained."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 3))
    settings = manifest_of([{"match": "*"}], {"ema": 0.5, "precision": "fp16"}, name=name)
    learner = build_learner(model, everything(model, 1e-2), settings, torch.device("cpu"))
    if rank == 0:
        for _ in range(2):
            loss = learner.model(torch.randn(4, 3, 8, 8)).sum()
            learner.scaler.scale(loss).backward()
            learner.optimizer.step()
        assert learner.average
        learner.average.update_parameters(learner.model)
    return learner


def share(folder: Path, name: str) -> None:
    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        with process_group(rank, listener, StopFlag()):
            learner = trained_learner(rank.rank, name)
            share_learner(learner)
            parts = snapshot_of(learner, {"step": 2})
            # It trains on, too.
            learner.model(torch.randn(4, 3, 8, 8)).sum().backward()
            learner.optimizer.step()
        for part, data in parts.items():
            (folder / f"{rank.rank}-{part}").write_bytes(data)

    assert (
        run_ranks(
            one_node(3),
            run,
            StopFlag(),
        )
        == 0
    )


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_all_ranks_get_what_rank_0_has(name: str, tmp_path: Path) -> None:
    in_fresh_process(share, tmp_path, name)
    parts = [path.name.removeprefix("0-") for path in tmp_path.glob("0-*")]
    assert len(parts) == 4
    for part in parts:
        first = (tmp_path / f"0-{part}").read_bytes()
        assert len(first) > 10
        for rank in (1, 2):
            assert (tmp_path / f"{rank}-{part}").read_bytes() == first, part
