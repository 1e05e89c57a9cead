"""Class names follow the labels as they are."""

import pytest

from worker.errors import DataError
from worker.ingest.planned import PlanOptions
from worker.ingest.rows import Row
from worker.ingest.set_classes import classes_of
from worker.ingest.splits import SplitOptions

OPTIONS = PlanOptions(split=SplitOptions(), shard_bytes=9)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a"], ("a", "b")),
        (["10", "9", "1"], ("1", "9", "10")),
        (["1", "2", "3"], ("1", "2", "3")),
        (["1", "a"], ("1", "a")),
    ],
)
def test_names_are_sorted_numbers_by_value(labels: list[str], names: tuple[str, ...]) -> None:
    rows = [Row(str(n), label) for n, label in enumerate(labels)]
    found, numbers = classes_of(rows, list(range(len(rows))), None, OPTIONS)
    assert found == names
    assert [found[numbers[n]] for n in range(len(rows))] == labels


def test_one_number_in_two_forms_is_refused() -> None:
    rows = [Row("a", "1"), Row("b", "01")]
    with pytest.raises(DataError, match="'01' and '1' are the same number"):
        classes_of(rows, [0, 1], None, OPTIONS)
