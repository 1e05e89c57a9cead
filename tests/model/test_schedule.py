"""Learning-rate schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.learners import everything, manifest_of
from worker.manifest import Schedule, Span
from worker.model.optimizer import build_optimizer, set_rates
from worker.model.schedule import factor_at, peaks


def test_one_cycle_is_torchs() -> None:
    theirs = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 0.5)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, [0.5], total_steps=37)
    model = nn.Linear(2, 2)
    manifest = manifest_of([{"match": "*"}], schedule={"name": "one_cycle"})
    ours = build_optimizer(model, everything(model, 0.5), manifest.optimizer)
    for step in range(37):
        set_rates(ours, factor_at(step, manifest.optimizer.schedule, 37, 5))
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-12)
        assert ours.param_groups[0]["betas"] == pytest.approx(theirs.param_groups[0]["betas"])
        theirs.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [1, 1, 1, 1, 1, 1, 1, 1]),
        (Schedule(warmup=Span(steps=3)), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (Schedule(warmup=Span(epochs=0.5)), [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        (Schedule(name="linear", final=0.2), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        (
            Schedule(name="cosine", warmup=Span(steps=4)),
            [0.2, 0.4, 0.6, 0.8, 1, 0.853553, 0.5, 0.146447],
        ),
        (
            Schedule(name="step", every=Span(steps=3), factor=0.5),
            [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25],
        ),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    factors = [factor_at(step, schedule, total=8, steps_per_epoch=4).rate for step in range(8)]
    assert factors == pytest.approx(expected, abs=1e-6)


@given(
    st.sampled_from(["constant", "cosine", "linear", "one_cycle"]),
    st.integers(1, 200),
    st.integers(0, 20),
)
def test_no_schedule_leaves_its_bounds(name: str, total: int, warmup: int) -> None:
    more = {"warmup": Span(steps=warmup)} if warmup and name != "one_cycle" else {}
    schedule = Schedule.model_validate({"name": name, **more})
    rates = [factor_at(step, schedule, total, 10).rate for step in range(total)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] > 0


@given(
    st.sampled_from(["constant", "cosine", "linear", "step", "one_cycle"]),
    st.integers(1, 60),
    st.integers(0, 60),
    st.integers(0, 59),
)
def test_a_rate_peaks_where_the_schedule_says(name: str, total: int, warm: int, at: int) -> None:
    """From any release on, the highest rate is there or at the peaks that come later."""
    more = {"warmup": Span(steps=warm)} if warm and name != "one_cycle" else {}
    every = {"every": Span(steps=7)} if name == "step" else {}
    schedule = Schedule.model_validate({"name": name, **more, **every})

    def factor(step: int) -> float:
        return factor_at(step, schedule, total, 4).rate

    release = at % total
    tops = {min(max(top, release), total - 1) for top in peaks(schedule, total, 4)}
    assert max(map(factor, tops)) == max(map(factor, range(release, total)))
