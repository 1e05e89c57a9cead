"""A step on any number of ranks is the step of plain PyTorch on the global batch."""

import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.learners import ALONE, Waits, manifest_of
from tests.support.engines import (
    CLASSES,
    PLAIN,
    PREPROCESSING,
    SIZES,
    Small,
    batch,
    blend,
    engine_for,
    learner_for,
    results,
)
from tests.support.processes import in_fresh_process
from tests.support.snapshots import snapshot_of
from worker.checkpoint.snapshot import restore_snapshot
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.learn.loss import Criterion
from worker.learn.step_result import StepResult
from worker.manifest import Manifest
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_uneven_parts_give_the_step_of_the_global_batch(
    world_size: int, blended: bool, tmp_path: Path
) -> None:
    alone = results(1, tmp_path, blended=blended)
    together = results(world_size, tmp_path, blended=blended)
    assert torch.allclose(alone["sums"], together["sums"], atol=1e-4)
    assert alone["sums"][:, 2].tolist() == [11, 6, 2, 1]
    for name, tensor in alone["weights"].items():
        assert torch.allclose(tensor, together["weights"][name], atol=1e-5), name


def test_a_blend_takes_pixels_and_label_from_the_image_before(tmp_path: Path) -> None:
    """Against the definition, on the first step, where image 5 is a hole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    part = batch(0, 0, 1)
    images, labels = PREPROCESSING.normalize(part.images), part.labels
    before, labels_before = images.roll(1, 0), labels.roll(1, 0)
    before[6], labels_before[6] = images[6], labels[6]
    mixed = images.clone()
    mixed[:, :, 2:6, 1:5] = before[:, :, 2:6, 1:5]
    outputs = model(mixed)[part.valid]
    own, other = (
        nn.functional.cross_entropy(outputs, x[part.valid], reduction="sum").item()
        for x in (labels, labels_before)
    )
    loss = results(1, tmp_path, blended=True)["sums"][0, 0].item()
    assert loss == pytest.approx(0.75 * own + 0.25 * other, rel=1e-5)


def train_on_one_image() -> None:
    def run(rank: Rank, listener: socket.socket | None) -> None:
        model = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)
        )
        with process_group(rank, listener, StopFlag()):
            engine = engine_for(learner_for(model, PLAIN), rank, PLAIN)
            loss, _, _ = engine.step(3, batch(3, 0, 1), 1).sums.tolist()
        assert 0 < loss < 10

    assert (
        run_ranks(
            one_node(1),
            run,
            StopFlag(),
        )
        == 0
    )


def test_one_image_of_one_pixel_does_not_stop_batch_norm() -> None:
    """Where a rank is left with one image, BatchNorm on 1x1 features would refuse to train."""
    in_fresh_process(train_on_one_image)


# BatchNorm apart, which sees what is in memory at once, all of these mean the same on any ranks.
SAME_ON_ALL = {
    "label_smoothing": ({"label_smoothing": 0.1}, {}),
    "micro_batch": ({"micro_batch": 2}, {}),
    "ema": ({"ema": 0.5}, {}),
    "clip_norm": ({}, {"clip_norm": 0.01}),
}


@pytest.mark.parametrize("setting", SAME_ON_ALL)
def test_settings_mean_the_same_on_any_ranks(setting: str, tmp_path: Path) -> None:
    train_settings, optimizer_settings = SAME_ON_ALL[setting]
    settings = manifest_of([{"match": "*"}], train_settings, **optimizer_settings)
    alone, together = (results(ranks, tmp_path, settings=settings) for ranks in (1, 3))
    plain = results(1, tmp_path)
    for name, tensor in alone["weights"].items():
        assert torch.allclose(tensor, together["weights"][name], atol=1e-5), name
    if setting == "ema":
        losses = [found["tally"][2][1] / (1 << 24) for found in (alone, plain)]
        assert losses[0] != pytest.approx(losses[1], abs=1e-4)


def test_clipping_and_micro_batches_are_plain_pytorchs(alone: None) -> None:
    """With SGD, as Adam's first step does not see how long the gradient is."""
    settings = manifest_of([{"match": "*"}], {"micro_batch": 4}, name="sgd", clip_norm=0.01)
    model, plain = Small(most=99), Small(most=99)
    for each in (model, plain):
        each.norm = nn.Identity()
    engine_for(learner_for(model, settings), ALONE, settings).step(3, batch(3, 0, 1), SIZES[3])
    assert model.seen == [1]
    model.seen.clear()
    model.load_state_dict(plain.state_dict())
    learner = learner_for(model, settings)
    engine_for(learner, ALONE, settings).step(0, batch(0, 0, 1), SIZES[0])
    assert model.seen == [4, 4, 3]
    part = batch(0, 0, 1)
    outputs = plain(PREPROCESSING.normalize(part.images)[part.valid])
    losses = nn.functional.cross_entropy(outputs, part.labels[part.valid], reduction="sum")
    (losses / SIZES[0]).backward()
    assert nn.utils.clip_grad_norm_(plain.parameters(), 0.01) > 0.1
    torch.optim.SGD(plain.parameters(), 1e-2, momentum=0.9).step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def release(world_size: int, folder: Path) -> None:
    """Four steps, the body of the model released before the third."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
        with process_group(rank, listener, StopFlag()):
            engine = engine_for(learner_for(model, PLAIN, release=2), rank, PLAIN)
            for step, size in enumerate(SIZES):
                first = next(model.parameters())
                before = first.detach().clone()
                engine.step(step, batch(step, rank.rank, world_size), size)
                assert torch.equal(first, before) == (step < 2)
        torch.save(model.state_dict(), folder / f"{world_size}-{rank.rank}.pt")

    assert (
        run_ranks(
            one_node(world_size),
            run,
            StopFlag(),
        )
        == 0
    )


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_release_is_the_same_on_any_ranks(world_size: int, tmp_path: Path) -> None:
    for ranks in (1, world_size):
        in_fresh_process(release, ranks, tmp_path)
    alone = torch.load(tmp_path / "1-0.pt")
    for rank in range(world_size):
        for name, tensor in torch.load(tmp_path / f"{world_size}-{rank}.pt").items():
            assert torch.allclose(tensor, alone[name], atol=1e-5), name


def test_a_step_that_is_not_finite_changes_nothing(alone: None) -> None:
    model = Small(most=99)
    settings = manifest_of([{"match": "*"}], {"ema": 0.9})
    learner = learner_for(model, settings)
    engine = engine_for(learner, ALONE, settings)
    assert engine.step(0, batch(0, 0, 1), SIZES[0]).finite
    assert learner.average
    before = [
        {name: tensor.clone() for name, tensor in part.state_dict().items()}
        for part in (model, learner.average)
    ]
    handle = model.norm.register_forward_pre_hook(lambda _, inputs: (inputs[0] * float("inf"),))
    outcome = engine.step(1, batch(1, 0, 1), SIZES[1])
    handle.remove()
    assert not outcome.finite
    assert outcome.sums.tolist() == [0, 0, 0]
    for part, kept in zip((model, learner.average), before, strict=True):
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, kept[name]), name
    assert engine.step(2, batch(2, 0, 1), SIZES[2]).finite


EVERYTHING = manifest_of(
    [{"match": "*"}], {"ema": 0.9, "micro_batch": 5}, clip_norm=0.5, name="sgd"
)


@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_steps_queued_ahead_are_those_that_are_waited_for(settings: Manifest, alone: None) -> None:
    """Whether the host waits for each step and whether the device decides changes no bit."""
    found = []
    for ahead, on_device in ((False, False), (True, False), (True, True)):
        torch.manual_seed(0)
        model = Small(most=99)
        learner = learner_for(model, settings, release=1)
        engine = engine_for(learner, ALONE, settings)
        engine._decides_on_device = on_device
        outcomes: list[StepResult | None] = []
        for step in (0, 1, 2, 0, 1):
            engine.launch(step, batch(step, 0, 1), SIZES[step])
            if ahead:
                outcomes.append(engine.settle())
            engine.update()
            if not ahead:
                outcomes.append(engine.settle())
        outcomes.append(engine.settle())
        sums = [outcome.sums for outcome in outcomes if outcome]
        assert len(sums) == 5
        found.append((torch.stack(sums).tolist(), snapshot_of(learner, {})))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_what_is_queued_behind_a_step_that_is_not_finite(name: str, alone: None) -> None:
    """The first step of all is left out on the device, and the next one trains as the first."""
    settings = manifest_of([{"match": "*"}], {"ema": 0.9}, name=name)
    weights = []
    for broken in (False, True):
        torch.manual_seed(0)
        model = Small(most=99)
        learner = learner_for(model, settings)
        engine = engine_for(learner, ALONE, settings)
        engine._decides_on_device = True
        if broken:
            hook = lambda _, inputs: (inputs[0] * float("nan"),)  # noqa: E731
            handle = model.norm.register_forward_pre_hook(hook)
            engine.launch(1, batch(1, 0, 1), SIZES[1])
            engine.update()
            handle.remove()
        engine.launch(0, batch(0, 0, 1), SIZES[0])
        left_out = engine.settle()
        engine.update()
        assert (left_out is not None and not left_out.finite) == broken
        outcome = engine.settle()
        assert outcome and outcome.finite
        weights.append([tensor.clone() for tensor in learner.result.state_dict().values()])
        weights[-1] += [tensor.clone() for tensor in model.state_dict().values()]
    for one, two in zip(*weights, strict=True):
        assert torch.equal(one, two)


def test_what_was_queued_can_be_abandoned(alone: None) -> None:
    model = Small(most=99)
    engine = engine_for(learner_for(model, PLAIN), ALONE, PLAIN)
    engine.step(0, batch(0, 0, 1), SIZES[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine.launch(1, batch(1, 0, 1), SIZES[1])
    engine.abandon()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("blended", [False, True])
def test_only_reading_a_step_waits_for_the_device(
    blended: bool, settings: Manifest, alone: None
) -> None:
    engine = engine_for(learner_for(Small(most=99), settings), ALONE, settings)
    engine._decides_on_device = True
    engine._criterion = Criterion(0.1, (1.0,) * CLASSES)
    mixed = blend(0) if blended else None
    whole = batch(0, 0, 1, led=blended)
    for _ in range(2):
        engine.step(0, whole, SIZES[0], mixed)
    with Waits() as waits:
        engine.launch(0, whole, SIZES[0], mixed)
        engine.update()
    # On the CPU, where the batch comes from: whether all of it is valid, and what is.
    assert waits.names == ["_local_scalar_dense", "nonzero"]
    with Waits() as waits:
        engine.settle()
    assert 0 < len(waits.names) < 20  # the one copy, number by number


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_and_is_restored(precision: str, alone: None) -> None:
    settings = manifest_of([{"match": "*"}], {"precision": precision})
    models = [Small(most=99) for _ in range(2)]
    learners = [learner_for(model, settings) for model in models]
    exact = learner_for(Small(most=99), PLAIN)
    engines = [engine_for(learner, ALONE, settings) for learner in learners]
    losses = [engines[0].step(0, batch(0, 0, 1), SIZES[0]).sums[0].item()]
    losses.append(engine_for(exact, ALONE, PLAIN).step(0, batch(0, 0, 1), SIZES[0]).sums[0].item())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert learners[0].scaler.is_enabled() == (precision == "fp16")
    restore_snapshot(snapshot_of(learners[0], {}), learners[1])
    for engine in engines:
        assert engine.step(1, batch(1, 0, 1), SIZES[1]).finite
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_overflow_of_fp16_lowers_the_scale(alone: None) -> None:
    settings = manifest_of([{"match": "*"}], {"precision": "fp16"})
    model = Small(most=99)
    learner = learner_for(model, settings)
    engine = engine_for(learner, ALONE, settings)
    scale = learner.scaler.get_scale()
    before = model.head.weight.detach().clone()
    handle = model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    assert engine.step(0, batch(0, 0, 1), SIZES[0]).finite
    handle.remove()
    assert learner.scaler.get_scale() == scale / 2
    assert torch.equal(model.head.weight, before)


def test_a_compiled_model_takes_the_same_step(alone: None) -> None:
    weights = []
    for compiled in (False, True):
        settings = manifest_of([{"match": "*"}], {"compile": compiled})
        model = Small(most=99)
        learner = learner_for(model, settings, release=1)
        engine = engine_for(learner, ALONE, settings)
        for step in range(2):
            engine.step(step, batch(step, 0, 1), SIZES[step])
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5), name


def test_the_average_is_evaluated_compiled_like_the_model(alone: None) -> None:
    settings = manifest_of([{"match": "*"}], {"compile": True, "ema": 0.9})
    learner = learner_for(Small(most=99), settings)
    engine_for(learner, ALONE, settings)
    assert learner.average
    for module in (learner.model, learner.average.module):
        assert module._compiled_call_impl is not None


def test_a_loss_that_is_not_finite_is_no_overflow_of_fp16(alone: None) -> None:
    settings = manifest_of([{"match": "*"}], {"precision": "fp16"})
    model = Small(most=99)
    engine = engine_for(learner_for(model, settings), ALONE, settings)
    model.norm.register_forward_pre_hook(lambda _, inputs: (inputs[0] * float("nan"),))
    outcome = engine.step(0, batch(0, 0, 1), SIZES[0])
    assert not outcome.finite
    assert outcome.sums.tolist() == [0, 0, 0]
