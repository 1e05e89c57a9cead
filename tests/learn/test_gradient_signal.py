"""The share of signal is what was put in, and the words say only what the figures show."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from worker.learn.gradient_signal import GradientSignal, GradientSums
from worker.learn.rate_diagnosis import (
    DiagnosedPart,
    Diagnosis,
    describe_diagnosis,
    findings,
    relative_step,
)
from worker.manifest import Group, Optimizer


def measured(signal: float, noise: float, batches: int, size: int = 2000) -> GradientSums:
    """Gradients that share a vector of this norm, plus noise of this norm in each batch."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(size))
    shared = torch.randn(size)
    shared *= signal / shared.norm()
    found = GradientSignal({"w": weight})
    for _ in range(batches):
        extra = torch.randn(size) / size**0.5 * noise
        weight.grad = shared + extra
        assert found.add()
    (sums,) = found.sums([["w"]], batches)
    return sums


@pytest.mark.usefixtures("process_group")
def test_the_share_is_that_of_the_true_gradient() -> None:
    for signal, noise in ((1.0, 1.0), (0.5, 2.0), (3.0, 0.5)):
        sums = measured(signal, noise, 8)
        assert sums.signal == pytest.approx(signal**2 / (signal**2 + noise**2), abs=0.03)
        assert sums.weight_norm == pytest.approx(2000**0.5)
        assert sums.relative_norm == pytest.approx(
            (signal**2 + noise**2) ** 0.5 / 2000**0.5, rel=0.1
        )
    assert measured(0.0, 1.0, 8).signal < 0.02
    assert measured(0.0, 0.0, 8).signal == 0.0


@pytest.fixture
def process_group() -> Iterator[None]:
    if dist.is_initialized():  # by an earlier test of this process
        yield
        return
    dist.init_process_group(
        "gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def diagnosis(signals: list[float], *, head_first: bool = True) -> Diagnosis:
    blocks = [
        DiagnosedPart(
            name=f"features.{n}" if n + 1 < len(signals) else "head",
            parameters=100,
            rate=1e-3,
            relative_norm=0.1,
            signal=signal,
            relative_step=1e-4,
        )
        for n, signal in enumerate(signals)
    ]
    return Diagnosis(batches=8, head_first=head_first, groups=(blocks[-1],), blocks=tuple(blocks))


def test_only_what_is_clear_is_said() -> None:
    natural = diagnosis([0.1, 0.25, 0.2, 0.13, 0.12, 0.15, 0.37, 0.07, 0.0, 0.0])
    (said,) = findings(natural)
    assert said.startswith("no signal in features.8 once the head is trained: freeze or release")
    noisy = diagnosis([0.14, 0.11, 0.06, 0.01, 0.0, 0.0, 0.01, 0.0, 0.0, 0.0])
    late, shift = findings(noisy)
    assert late.startswith("no signal in features.3 to features.8")
    assert "the signal is in the first blocks: this looks like another kind of picture" in shift
    assert "layer decay works against it" in shift
    (none,) = findings(diagnosis([0.0] * 10))
    assert none.startswith("8 batches show no signal in any block of the backbone")
    (unknown,) = findings(diagnosis([0.2] * 10, head_first=False))
    assert unknown.startswith("the head is new: its gradient hides")
    assert not findings(diagnosis([0.2] * 10))
    rows = [" ".join(line.split()) for line in describe_diagnosis(natural).splitlines()]
    assert "features.6 100 0.001 1.00e-01 0.370 1.0e-04 ███████░░░░░░░░░░░░░" in rows
    fast = diagnosis([0.2] * 10)
    fast = replace(fast, blocks=(replace(fast.blocks[0], relative_step=0.3), *fast.blocks[1:]))
    assert "an update moves features.0 by 30% of its weights' norm" in findings(fast)[0]


def test_how_far_an_update_moves_the_weights() -> None:
    sums = GradientSums(
        mean_square=1.0, variance=1.0, norm=2.0, weight_norm=10.0, parameters=400, batches=8
    )
    groups = (Group(match=("*",)),)
    adam = Optimizer(lr=1e-3, groups=groups)
    assert relative_step(sums, 1e-3, adam) == pytest.approx(1e-3 * 20 / 10)
    sgd = Optimizer(name="sgd", lr=1e-3, momentum=0.5, groups=groups)
    assert relative_step(sums, 1e-3, sgd) == pytest.approx(1e-3 * 0.2 / 0.5)
