"""A training step on a GPU: the same as on the CPU, and never waiting where it need not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.learners import ALONE, CPU, batch_of, everything, manifest_of
from tests.support.snapshots import snapshot_of
from worker.checkpoint.snapshot import restore_snapshot
from worker.data.loader import Batch
from worker.learn.loss import Criterion
from worker.learn.training_step import Engine
from worker.model.backbone import build_backbone, preprocessing_of
from worker.model.learner import build_learner
from worker.ranks.gpu_faults import start_cuda

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)
SIDE, CLASSES, FULL = 32, 10, 16
FP32 = {"precision": "fp32"}  # what is left to choose is bf16 there
PREPROCESSING = preprocessing_of("resnet18").at(SIDE)


@pytest.fixture(scope="module", autouse=True)
def nccl() -> Iterator[None]:
    """A group of one rank, as `worker train` has it on a GPU."""
    start_cuda(GPU)
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def engine_on(device: torch.device, train: Any = None, **optimizer: Any) -> Engine:
    """An engine for ResNet-18 with the same first weights on every device."""
    manifest = manifest_of([{"match": "*"}], {"batch_size": FULL, **(train or {})}, **optimizer)
    model = build_backbone("resnet18", CLASSES, 0, SIDE).model
    groups = everything(model, manifest.optimizer.lr)
    learner = build_learner(model, groups, manifest, device)
    clip_norm = manifest.optimizer.clip_norm
    return Engine(
        learner,
        PREPROCESSING,
        Criterion(),
        train=manifest.train,
        clip_norm=clip_norm,
        rank=ALONE,
        full_batch=FULL,
    )


def weights_of(engine: Engine) -> dict[str, Tensor]:
    return {
        name: tensor.cpu().clone() for name, tensor in engine.learner.model.state_dict().items()
    }


def require_alike(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Of few images, BatchNorm makes much of the last bits, so tensors are compared by norm."""
    for name, tensor in expected.items():
        difference = (tensor - found[name]).double().norm()
        assert difference <= 0.02 * tensor.double().norm(), name


@pytest.fixture
def exact() -> Iterator[None]:
    """Without TF32, so that the devices can be compared."""
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        setattr(backend, "allow_tf32", False)
    yield
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        setattr(backend, "allow_tf32", True)


@pytest.mark.parametrize("images", [FULL, 9, 3, 1], ids=lambda n: f"{n} images")
def test_a_step_is_that_of_the_cpu(images: int, exact: None) -> None:
    """Of a full batch, and of the last ones of an epoch, too small for statistics of their own."""
    steps, sums = [], []
    for device in (CPU, GPU):
        engine = engine_on(device, FP32, name="sgd", lr=0.01)
        before = weights_of(engine)
        outcome = engine.step(0, batch_of(images, SIDE, CLASSES), images)
        assert outcome.finite
        steps.append({name: after - before[name] for name, after in weights_of(engine).items()})
        sums.append(outcome.sums)
    require_alike(*steps)
    assert torch.allclose(sums[0], sums[1], rtol=1e-4)


def test_bad_samples_count_as_none(exact: None) -> None:
    steps = []
    for device in (CPU, GPU):
        engine = engine_on(device, FP32, name="sgd", lr=0.01)
        before = weights_of(engine)
        engine.expects_holes = True
        batch = batch_of(FULL, SIDE, CLASSES)
        valid = torch.arange(FULL) % 4 != 1
        batch = Batch(images=batch.images, labels=batch.labels, ids=batch.ids, valid=valid)
        assert engine.step(0, batch, FULL).sums[2] == 12
        steps.append({name: after - before[name] for name, after in weights_of(engine).items()})
    require_alike(*steps)


@pytest.mark.parametrize("train", [{}, {"ema": 0.9}, FP32], ids=repr)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_that_is_not_finite_changes_nothing(name: str, train: dict[str, Any]) -> None:
    """Decided on the device, without asking the host: weights, moments and statistics."""
    engine = engine_on(GPU, train, name=name, clip_norm=1.0)
    engine.step(0, batch_of(FULL, SIDE, CLASSES), FULL)
    before = snapshot_of(engine.learner, {})
    head = engine.learner.model.get_submodule("fc")
    hook = head.register_forward_hook(lambda module, inputs, output: output * float("inf"))
    assert not engine.step(1, batch_of(FULL, SIDE, CLASSES, 1), FULL).finite
    hook.remove()
    assert snapshot_of(engine.learner, {}) == before
    assert engine.step(2, batch_of(FULL, SIDE, CLASSES, 2), FULL).finite
    assert snapshot_of(engine.learner, {}) != before


@pytest.mark.parametrize(
    "settings",
    [{}, {"train": {"ema": 0.9}, "clip_norm": 1.0}, {"train": {"precision": "fp16"}}],
    ids=["plain", "everything on", "fp16"],
)
def test_queuing_a_step_never_waits_for_the_device(settings: dict[str, Any]) -> None:
    settings = dict(settings)
    engine = engine_on(GPU, settings.pop("train", {}), name="adamw", **settings)
    batch = pinned(batch_of(FULL, SIDE, CLASSES))
    for step in range(4):
        engine.launch(step, batch, FULL)
        engine.settle()
        engine.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.launch(4, batch, FULL)
        engine.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    outcome = engine.settle()
    assert outcome
    assert outcome.finite


def pinned(batch: Batch) -> Batch:
    """As the loader gives it."""
    return Batch(
        images=batch.images.pin_memory(),
        labels=batch.labels.pin_memory(),
        ids=batch.ids,
        valid=batch.valid,
    )


def test_fp32_means_tf32_in_convolutions_and_in_matrix_products() -> None:
    """TF32 has 10 bits of mantissa: an error near 1e-3 where fp32's is near 1e-6."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    images = torch.randn(8, 64, 16, 16, generator=generator, dtype=torch.float64)
    kernel = torch.randn(64, 64, 3, 3, generator=generator, dtype=torch.float64)
    pairs = [
        (a @ b, a.float().to(GPU) @ b.float().to(GPU)),
        (
            nn.functional.conv2d(images, kernel),
            nn.functional.conv2d(images.float().to(GPU), kernel.float().to(GPU)),
        ),
    ]
    for exact, found in pairs:
        error = float((found.cpu().double() - exact).abs().mean() / exact.abs().mean())
        assert 1e-5 < error < 1e-2


def test_a_checkpoint_of_a_gpu_goes_on_anywhere() -> None:
    """To the bit on a GPU; on a CPU it is the same state."""
    engine = engine_on(GPU, {"ema": 0.9}, name="adamw")
    engine.step(0, batch_of(FULL, SIDE, CLASSES), FULL)
    saved = snapshot_of(engine.learner, {})
    for device in (GPU, CPU):
        other = engine_on(device, {"ema": 0.9}, name="adamw")
        restore_snapshot(saved, other.learner)
        assert snapshot_of(other.learner, {}) == saved


@pytest.mark.parametrize("images", [FULL, FULL - 3])
def test_a_batch_beyond_memory_is_trained_in_smaller_passes(images: int) -> None:
    engine = engine_on(GPU, name="sgd")
    tried: list[int] = []
    attempt = engine._try

    def limited(inputs: Any) -> None:
        tried.append(len(inputs.labels))
        if tried[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        attempt(inputs)

    engine._try = limited  # type: ignore[method-assign]
    outcome = engine.step(0, batch_of(FULL, SIDE, CLASSES), FULL)
    assert outcome.finite
    assert outcome.sums[2] == FULL
    assert max(tried[-2:]) <= 5
    assert engine.step(1, batch_of(images, SIDE, CLASSES), images).sums[2] == images
