"""Reports of ranks are merged by what they count."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.progress import progress_at
from worker.record.telemetry import StepReport, merge_reports


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 64), st.floats(0.1, 9)), min_size=1))
def test_reports_are_merged_by_what_they_count(parts: list[tuple[float, int, float]]) -> None:
    reports = [
        StepReport(
            step=progress_at(number, loss, min(1.0, loss / 9)),
            images=images,
            counted=images,
            seconds=seconds,
        )
        for number, (loss, images, seconds) in enumerate(parts)
    ]
    one = merge_reports(reports)
    images = sum(images for _, images, _ in parts)
    seconds = sum(seconds for _, _, seconds in parts)
    assert one.step == len(parts) - 1
    assert one.loss == pytest.approx(sum(loss * count for loss, count, _ in parts) / images)
    assert one.images_per_second == pytest.approx(images / seconds)
    assert 0 <= one.wait_ratio <= 1 + 1e-9


def test_a_step_that_counted_nothing_has_no_loss() -> None:
    left_out = StepReport(step=progress_at(2, math.nan), images=8, counted=0, seconds=1.0)
    assert math.isnan(merge_reports([left_out]).loss)
    both = merge_reports(
        [StepReport(step=progress_at(1, 3.0), images=8, counted=8, seconds=1.0), left_out]
    )
    assert (both.step, both.loss, both.images_per_second) == (2, 3.0, 8.0)
