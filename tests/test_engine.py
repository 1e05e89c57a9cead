"""The optimizer step over ranks: the mean over the global batch, however it is divided."""

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from bench.learners import ALONE, Waits, manifest_of, rate_group
from tests.support.processes import in_fresh_process
from tests.support.snapshots import snapshot_of
from worker.checkpoint.snapshot import restore_snapshot
from worker.data.epoch_plan import split
from worker.data.loader import Batch
from worker.data.mixup import Blend
from worker.data.preprocessing import Preprocessing
from worker.errors import ConfigurationError
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.learn import evaluation as evaluation_module
from worker.learn import training_step as engine_module
from worker.learn.evaluation import evaluate
from worker.learn.loss import Criterion, class_weights
from worker.learn.step_inputs import Inputs
from worker.learn.step_result import StepResult
from worker.learn.training_step import Engine
from worker.manifest import Manifest
from worker.model.learner import Learner, build_learner, precision_on
from worker.ranks.device_transfer import Mark
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


def batch(step: int, rank: int, world_size: int, led: bool = False) -> Batch:
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
                    batch(step, rank.rank, world_size, blended),
                    size,
                    blend(step) if blended else None,
                ).sums
                for step, size in enumerate(SIZES)
            ]
            parts = [batch(step, rank.rank, world_size) for step in (0, 1)]
            result = evaluate(learner, parts, PREPROCESSING, CLASSES, lambda: False)
        assert result
        evaluation, confusion, _ = result
        found = {
            "weights": model.state_dict(),
            "sums": torch.stack(sums),
            "confusion": torch.from_numpy(confusion) if rank.rank == 0 else None,
            "evaluation": asdict(evaluation),
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
    world_size: int, folder: Path, blended: bool = False, settings: Manifest = PLAIN
) -> dict[str, Any]:
    """What rank 0 ends with, like all others, and the sums over ranks."""
    in_fresh_process(train, world_size, folder, blended, settings)
    loaded = [torch.load(folder / f"{world_size}-{rank}.pt") for rank in range(world_size)]
    for found in loaded:
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
    assert int(one["confusion"][:, 2].sum()) == SIZES[0] + SIZES[1] - 2
    for name in ("accuracy", "top5_accuracy", "per_class"):
        assert one["evaluation"][name] == three["evaluation"][name]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    model.load_state_dict(one["weights"])
    batches = [batch(step, 0, 1) for step in (0, 1)]
    images = torch.cat([part.images[part.valid] for part in batches])
    labels = torch.cat([part.labels[part.valid] for part in batches])
    outputs = model(PREPROCESSING.normalize(images))
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
    loss = results(1, tmp_path, True)["sums"][0, 0].item()
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
    alone, together = (results(ranks, tmp_path, False, settings) for ranks in (1, 3))
    plain = results(1, tmp_path)
    for name, tensor in alone["weights"].items():
        assert torch.allclose(tensor, together["weights"][name], atol=1e-5), name
    if setting == "ema":
        assert alone["evaluation"]["loss"] != pytest.approx(plain["evaluation"]["loss"], abs=1e-4)


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
    with pytest.raises(ConfigurationError, match="memory does not hold one image"):
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


def test_evaluation_goes_on_in_halves_where_memory_runs_out(alone: None) -> None:
    results = []
    for most in (99, 2):
        model = Small(most)
        result = evaluate(
            learner_for(model, PLAIN), [batch(0, 0, 1)], PREPROCESSING, CLASSES, lambda: False
        )
        assert result
        results.append(result[0])
        assert max(model.seen) <= most
    assert results[0].loss == pytest.approx(results[1].loss)
    assert results[0].accuracy == results[1].accuracy


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
    whole = batch(0, 0, 1, blended)
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


def test_an_evaluation_waits_once_per_batch(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_for(Small(most=99), PLAIN)
    marks: list[str] = []
    monkeypatch.setattr(Mark, "wait", lambda self: marks.append("wait"))
    # In which `Waits` would see nothing.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad())
    batches = [batch(step, 0, 1) for step in (0, 1, 0, 1)]
    evaluate(learner, batches[:1], PREPROCESSING, CLASSES, lambda: False)

    def read(count: int) -> list[str]:
        with Waits() as waits:
            evaluate(learner, batches[:count], PREPROCESSING, CLASSES, lambda: False)
        return waits.names

    # On the CPU, where the batch comes from: its ids, whether all is valid, and what is.
    of_one_batch = ["lift_fresh", "_local_scalar_dense", "nonzero"]
    four, two = read(4), read(2)
    assert Counter(four) - Counter(two) == Counter(2 * of_one_batch)
    assert len(marks) == 3 + 1


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


def test_class_weights_and_balance() -> None:
    labels = np.array([0, 0, 0, 1], dtype=np.int32)
    balanced = manifest_of([{"match": "*"}], {"class_weights": "balanced"}).train
    weights = class_weights(balanced, ["a", "b"], lambda: labels)
    assert weights == pytest.approx((2 / 3, 2.0))
    gaps = class_weights(balanced, ["none", "a", "none", "b"], lambda: labels * 2 + 1)
    assert gaps and (gaps[1], gaps[3]) == pytest.approx((2 / 3, 2.0))
    named = manifest_of([{"match": "*"}], {"class_weights": {"b": 3.0}}).train
    assert class_weights(named, ["a", "b"], lambda: labels) == (1.0, 3.0)
    with pytest.raises(ConfigurationError, match="train.class_weights: no class 'b'; there are a"):
        class_weights(named, ["a"], lambda: labels)
    logits, numbers = torch.randn(4, 2), torch.from_numpy(labels).long()
    inputs = Inputs(
        images=torch.zeros(4, 3, 8, 8),
        labels=numbers,
        partners=numbers,
        weights=torch.ones(4),
        own=1.0,
        count=4,
    )
    ours = Criterion(0.1, (1.0, 3.0)).losses(logits, [], inputs)
    theirs = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]), reduction="none", label_smoothing=0.1)
    assert torch.allclose(ours, theirs(logits, numbers))


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


def test_a_loss_that_is_not_finite_is_no_overflow_of_fp16(alone: None) -> None:
    settings = manifest_of([{"match": "*"}], {"precision": "fp16"})
    model = Small(most=99)
    engine = engine_for(learner_for(model, settings), ALONE, settings)
    model.norm.register_forward_pre_hook(lambda _, inputs: (inputs[0] * float("nan"),))
    outcome = engine.step(0, batch(0, 0, 1), SIZES[0])
    assert not outcome.finite
    assert outcome.sums.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("real", "expected"), [(True, torch.bfloat16), (False, torch.float16)], ids=["H100", "V100"]
)
def test_auto_is_the_fast_precision_of_the_device(
    real: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: real)
    assert precision_on(torch.device("cuda", 0), "auto") is expected
    assert precision_on(torch.device("cuda", 0), "fp32") is None
    assert precision_on(torch.device("cpu"), "auto") is None


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


def test_an_evaluation_remembers_what_the_memory_holds() -> None:
    calls: list[int] = []

    class Large(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError
            return images.flatten(1)[:, :2]

    images = torch.rand(10, 3, 2, 2)
    logits = evaluation_module._Logits(Large())
    for _ in range(2):
        assert torch.equal(logits(images), images.flatten(1)[:, :2])
    assert calls == [10, 5, 3, 3, 3, 1, 3, 3, 3, 1]
