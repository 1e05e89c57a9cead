"""Micro-batches are halved when memory runs out."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.learners import ALONE, manifest_of
from tests.support.engines import (
    CLASSES,
    PLAIN,
    SIZES,
    Small,
    batch,
    engine_for,
    learner_for,
)
from tests.support.processes import in_fresh_process
from worker.errors import ConfigurationError
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.learn import training_step as engine_module
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag


def test_out_of_memory_halves_the_micro_batch(
    alone: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "_can_run_out", lambda device: True)
    model = Small(most=4)
    engine = engine_for(learner_for(model, PLAIN), ALONE, PLAIN)
    outcome = engine.step(0, batch(0, 0, 1), SIZES[0])
    assert outcome.sums[2].item() == 11
    assert "micro-batches of 3 images" in caplog.text
    assert model.seen == [3, 3, 3, 3, 3, 2]  # the trial of two, and then the step
    assert model.state_dict()["norm.num_batches_tracked"] == 4
    hopeless = engine_for(learner_for(Small(most=0), PLAIN), ALONE, PLAIN)
    with pytest.raises(ConfigurationError, match="not even one image fits into the GPU's memory"):
        hopeless.step(0, batch(0, 0, 1), SIZES[0])


def test_memory_is_tried_again_until_a_whole_share_fits(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch's short last batch, where a resume may begin, proves nothing for the next."""
    monkeypatch.setattr(engine_module, "_can_run_out", lambda device: True)
    model = Small(most=4)
    settings = manifest_of([{"match": "*"}], {"batch_size": SIZES[0]})
    engine = engine_for(learner_for(model, settings), ALONE, settings)
    for step in (3, 3, 3):
        engine.step(step, batch(step, 0, 1), SIZES[step])
    model.seen.clear()
    engine.step(0, batch(0, 0, 1), SIZES[0])
    assert max(model.seen) == 3


def compiled_graphs(folder: Path, tries_memory: bool) -> None:
    """Compile a model of two gradient buckets on two ranks, after a trial of memory or without."""
    sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    real = nn.Module.compile

    def compile_(self: nn.Module) -> None:
        real(self, backend=backend)

    setattr(nn.Module, "compile", compile_)
    setattr(engine_module, "_can_run_out", lambda device: tries_memory)

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        with process_group(rank, listener, StopFlag()):
            wide = [layer for _ in range(2) for layer in (nn.Linear(2000, 2000), nn.ReLU())]
            model = nn.Sequential(
                nn.Flatten(), nn.Linear(192, 2000), nn.ReLU(), *wide, nn.Linear(2000, CLASSES)
            )
            settings = manifest_of([{"match": "*"}], {"compile": True})
            engine = engine_for(learner_for(model, settings), rank, settings)
            engine.step(0, batch(0, rank.rank, 2), SIZES[0])
        if rank.rank == 0:
            (folder / f"{tries_memory}").write_text(str(len(sizes)))

    assert (
        run_ranks(
            one_node(2),
            run,
            StopFlag(),
        )
        == 0
    )


def test_a_trial_of_memory_leaves_compiled_graphs_cut_at_the_gradient_buckets(
    tmp_path: Path,
) -> None:
    """Else all gradients come at once, and there is nothing to exchange beside backward."""
    for tries_memory in (False, True):
        in_fresh_process(compiled_graphs, tmp_path, tries_memory)
    without, after = ((tmp_path / str(tried)).read_text() for tried in (False, True))
    assert int(without) > 1
    assert after == without
