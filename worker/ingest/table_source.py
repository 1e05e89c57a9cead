"""A table as a source: a row per image, with its path or address, its label and, maybe, split."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from worker.errors import ConfigurationError
from worker.ingest.folder_source import FILES_PER_UNIT, hash_listing
from worker.ingest.image_places import ImagePlaces
from worker.ingest.source import Item, Source, Unit
from worker.ingest.splits import split_named
from worker.ingest.table_columns import Columns, find_columns
from worker.ingest.table_rows import cell_text, read_table
from worker.text import printable

_SHOWN = 5


class TableSource(Source):
    """A table of images.

    Args:
        uri: Its address.
        wanted: The columns that the user names, by `image`, `label`, `split` and `group`.
        root: Address that relative paths start from; None for the folder of the table.
        split: The split of all rows without one.

    Raises:
        ConfigurationError: If the columns cannot be told, or a row contradicts another.
    """

    def __init__(
        self, uri: str, wanted: Mapping[str, str | None], root: str | None, split: str = ""
    ) -> None:
        rows = read_table(uri)
        names = list(dict.fromkeys(name for row in rows[:1000] for name in row))
        columns = find_columns(names, rows, wanted)
        stem = uri.rpartition("/")[2].rpartition(".")[0]
        self._places = ImagePlaces(root or uri.rpartition("/")[0] or ".", stem)
        self._rows, self.passed_over = _distinct(uri, rows, columns, split)
        base = self._places.settle([row[0] for row in self._rows[:_SHOWN]])
        where = f", images in {base}/" if base else ""
        self.description = f"table, {columns}{where}"
        self.rereads = not any(row[0].startswith(("http:", "https:")) for row in self._rows)
        self.units = tuple(
            self._unit(self._rows[start : start + FILES_PER_UNIT], start)
            for start in range(0, len(self._rows), FILES_PER_UNIT)
        )

    def _unit(self, rows: Sequence[tuple[str, ...]], start: int) -> Unit:
        listing = [(" ".join(row), self._places.version(row[0])) for row in rows]
        return Unit(f"rows from {start + 1}", hash_listing(listing), len(rows))

    def items(self, unit: int) -> Iterator[Item]:
        """Yield the images of a unit, in the order of the table."""
        start = unit * FILES_PER_UNIT
        for name, label, split, group in self._rows[start : start + FILES_PER_UNIT]:
            yield Item(
                key=_key(name),
                label=label,
                split=split,
                group=group,
                load=functools.partial(self._places.read, name),
            )


def _distinct(
    uri: str, rows: Sequence[Mapping[str, Any]], columns: Columns, split: str
) -> tuple[list[tuple[str, str, str, str]], Counter[str]]:
    """Return image, label, split and group of each row, without rows that repeat another.

    Raises:
        ConfigurationError: If an image has two labels, or a split has an unknown name.
    """
    found: dict[str, tuple[str, str, str, str]] = {}
    passed_over: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        image = str(row.get(columns.image) or "").strip()
        if not image:
            passed_over["row without an image"] += 1
            continue
        label = cell_text(row.get(columns.label))
        own = _split(uri, number, cell_text(row.get(columns.split or "")), split)
        group = cell_text(row.get(columns.group or ""))
        entry = (image, label, own, group)
        known = found.setdefault(image, entry)
        if known is not entry:
            if known[1] != label:
                raise ConfigurationError(
                    f"{uri}: row {number}: {printable(image)} is labeled {label!r}, but "
                    f"{known[1]!r} in an earlier row; keep one of them (an image has one class)"
                )
            passed_over["repeated row"] += 1
    return list(found.values()), passed_over


def _split(uri: str, number: int, text: str, default: str) -> str:
    if not text or text.lower() == "unassigned":
        return default
    split = split_named(text)
    if split is None:
        raise ConfigurationError(
            f"{uri}: row {number}: the split {text!r} is none of train, val and test; correct it, "
            "or name another column with --split"
        )
    return split


def _key(name: str) -> str:
    """Return the key of an image: its path without scheme, leading slashes and suffix."""
    path = name.partition("://")[2].partition("/")[2] if "://" in name else name
    path = path.partition("?")[0].strip("/").removeprefix("./")
    stem, dot, suffix = path.rpartition(".")
    key = stem if dot and "/" not in suffix else path
    return key or "image"
