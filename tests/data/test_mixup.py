"""MixUp and CutMix are keyed and keep the share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data.mixup import Blend, draw_blend, partners_of

ALPHAS = st.just(0.0) | st.floats(0.01, 2)


@settings(deadline=None)
@given(ALPHAS, ALPHAS, st.integers(8, 300), st.integers(0, 9999))
def test_blends_are_keyed_and_keep_the_share(
    mixup: float, cutmix: float, side: int, step: int
) -> None:
    if not mixup and not cutmix:
        return
    blend = draw_blend(mixup=mixup, cutmix=cutmix, side=side, seed=0, step=step)
    assert blend == draw_blend(mixup=mixup, cutmix=cutmix, side=side, seed=0, step=step)
    assert 0 <= blend.own <= 1
    ones, zeros = torch.ones(1, 3, side, side), torch.zeros(1, 3, side, side)
    assert blend.apply(ones, zeros).mean().item() == pytest.approx(blend.own, abs=1e-5)


def test_both_blends_are_used_about_equally() -> None:
    blends = [draw_blend(mixup=0.2, cutmix=1.0, side=32, seed=0, step=step) for step in range(400)]
    assert 150 < sum(blend.box is None for blend in blends) < 250
    assert all(
        draw_blend(mixup=0.2, cutmix=0, side=32, seed=0, step=step).box is None
        for step in range(20)
    )
    assert all(
        draw_blend(mixup=0, cutmix=1.0, side=32, seed=0, step=step).box for step in range(20)
    )
    assert (
        len({draw_blend(mixup=1.0, cutmix=0, side=32, seed=0, step=step).own for step in range(20)})
        == 20
    )


def test_a_partner_that_was_left_out_blends_nothing() -> None:
    valid = torch.tensor([False, True, True, False, True])
    assert partners_of(valid).tolist() == [1, 1, 2, 4]
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    blended = Blend(0.25, None).apply(images[1:], images[partners_of(valid)])
    assert blended[:, 0, 0, 0].tolist() == [1, 1.25, 2.25, 4]
