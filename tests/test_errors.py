"""Exit codes of ranks and of their parent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import (
    exit_code_of,
    most_fatal,
)

CODES = [78, 65, 76, 70, 69, 75, 0]


@given(st.lists(st.sampled_from(CODES), min_size=1))
def test_the_most_fatal_code_wins(codes: list[int]) -> None:
    assert most_fatal(codes) == min(codes, key=CODES.index)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (0, 0),
        (75, 75),
        (78, 78),
        (1, 69),
        (3, 70),
        (-9, 69),
        (-15, 69),
        (-6, 69),
        (-11, 70),
        (134, 69),
        (137, 69),
        (139, 70),
    ],
)
def test_statuses_become_codes(status: int, code: int) -> None:
    assert exit_code_of(status) == code
