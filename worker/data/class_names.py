"""The classes of a data set: their names, and the class number of each label."""

import re
from collections.abc import Iterable

from worker.errors import ConfigurationError, DataError
from worker.store import read_uri
from worker.text import read_name, read_text

_NUMBER = re.compile(r"[0-9]{1,9}")
_MAX_CLASSES = 1 << 16  # larger numbers are taken for names, not class numbers


def read_classes(uri: str) -> tuple[str, ...]:
    """Return the class names in a text file, which lists one per line, in label order."""
    try:
        lines = [read_name(line) for line in read_text(read_uri(uri)).split("\n")]
    except ValueError as error:
        raise ConfigurationError(f"{uri}: {error}") from None
    names = tuple(filter(None, lines))
    if len(names) < 2:
        raise ConfigurationError(f"{uri}: needs two or more class names, one per line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigurationError(f"{uri}: lists the class {twice!r} twice; remove one")
    return names


def find_classes(labels_of_shards: Iterable[set[str]], known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the numbers up to the largest label if all labels are numbers, else the sorted names.

    If the labels are numbers and `known`, the names in the index being replaced, covers them all,
    those names are returned.
    """
    labels = set().union(*labels_of_shards)
    numbers = {label for label in labels if _NUMBER.fullmatch(label)}
    numbers = {label for label in numbers if int(label) < _MAX_CLASSES}
    if numbers and numbers != labels:
        raise DataError(
            f"some labels are class numbers ({min(numbers)}) and some are not "
            f"({min(labels - numbers)}); correct them or pass --classes"
        )
    if not numbers:
        return tuple(sorted(labels))
    count = 1 + max(map(int, labels))
    return known if count <= len(known) else tuple(map(str, range(count)))


def number_of(label: str, numbers: dict[str, int]) -> int | None:
    if label in numbers:
        return numbers[label]
    return int(label) if _NUMBER.fullmatch(label) and int(label) < len(numbers) else None
