"""The classes of a data set, from the labels of its images."""

import itertools
from collections.abc import Sequence

from worker.data.class_names import number_of
from worker.errors import DataError
from worker.ingest.planned import PlanOptions
from worker.ingest.rows import Row

_MAX_DIGITS = 10


def with_names(rows: Sequence[Row], sound: list[int], classes: tuple[str, ...]) -> list[Row]:
    """Return the rows with class names in place of numbers into the given list."""
    named = list(rows)
    for i in sound:
        label = rows[i].label
        if label not in classes and label.isdecimal() and int(label) < len(classes):
            named[i] = rows[i]._replace(label=classes[int(label)])
    return named


def classes_of(
    rows: Sequence[Row], sound: list[int], declared: tuple[str, ...] | None, options: PlanOptions
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the class names, and the class number of each row."""
    given = options.classes or declared
    present = {rows[i].label for i in sound}
    if given and options.keep_classes:
        given = tuple(name for name in given if name in present)
    classes = given or _names_of(present)
    numbers = {name: number for number, name in enumerate(classes)}
    labels: dict[int, int] = {}
    for i in sound:
        number = number_of(rows[i].label, numbers)
        if number is None:
            raise DataError(
                f"{rows[i].key}: its class {rows[i].label!r} is not among the classes; correct "
                "the label or the list of classes"
            )
        labels[i] = number
    return classes, labels


def _names_of(labels: set[str]) -> tuple[str, ...]:
    """Return the class names that the labels stand for: sorted, and by value if all are numbers."""
    numbers = {label for label in labels if label.isdecimal() and len(label) < _MAX_DIGITS}
    if numbers != labels:
        return tuple(sorted(labels))
    by_value = sorted(labels, key=lambda label: (int(label), label))
    for one, other in itertools.pairwise(by_value):
        if int(one) == int(other):
            raise DataError(
                f"the labels {one!r} and {other!r} are the same number; use one of them"
            )
    return tuple(by_value)
