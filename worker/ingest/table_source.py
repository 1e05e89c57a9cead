"""A table as a source: a row per image, with its path or address, its label and maybe its split."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from worker.errors import ConfigurationError, DataError
from worker.ingest.folder_source import FILES_PER_UNIT, hash_listing
from worker.ingest.image_places import ImagePlaces
from worker.ingest.source import Item, Source, Unit
from worker.ingest.splits import split_named
from worker.ingest.table_columns import TABLE_OPTIONS, Columns, find_columns
from worker.ingest.table_rows import cell_text, read_table
from worker.redaction import redacted
from worker.text import printable

_SETTLED_BY = 100


class TableSource(Source):
    """A table of images.

    Args:
        uri: Its address.
        wanted: The columns that the user names, by `image`, `label`, `split` and `group`.
        root: Address that relative paths start from; None for the folder of the table.
        split: The split of every row that states none.

    Raises:
        ConfigurationError: If the columns cannot be determined, or a row contradicts another.
    """

    options = TABLE_OPTIONS

    def __init__(
        self, uri: str, wanted: Mapping[str, str | None], root: str | None, split: str = ""
    ) -> None:
        rows = read_table(uri)
        names = list(dict.fromkeys(name for row in rows[:1000] for name in row))
        columns = find_columns(names, rows, wanted)
        stem = uri.rpartition("/")[2].rpartition(".")[0]
        self._places = ImagePlaces(root or uri.rpartition("/")[0] or ".", stem)
        self._rows, self.passed_over = _distinct(uri, rows, columns, split)
        base = self._places.settle([row[0] for row in self._rows[:_SETTLED_BY]])
        where = f", images in {base}/" if base else ""
        self.description = f"table, {columns}{where}"
        web = ("http:", "https:")
        self.rereads = not self._places.on_web and not any(
            row[0].lower().startswith(web) for row in self._rows
        )
        self.units = tuple(
            self._unit(self._rows[start : start + FILES_PER_UNIT], start)
            for start in range(0, len(self._rows), FILES_PER_UNIT)
        )

    def _unit(self, rows: Sequence[tuple[str, ...]], start: int) -> Unit:
        listing = [(" ".join(row), self._places.version(row[0])) for row in rows]
        return Unit(f"rows from {start + 1}", hash_listing(listing), len(rows))

    def items(self, unit: int) -> Iterator[Item]:
        """Yield the images of a unit, in the order of the table."""
        count = self.units[unit].images or 0
        return (self.item(unit, position) for position in range(count))

    def item(self, unit: int, position: int) -> Item:
        """Return the image of a row."""
        name, label, split, group = self._rows[unit * FILES_PER_UNIT + position]
        return Item(
            key=_key(name),
            label=label,
            split=split,
            group=group,
            place=name,
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
            passed_over["imageless row"] += 1
            continue
        label = cell_text(row.get(columns.label))
        own = read_split(f"{uri}: row {number}", cell_text(row.get(columns.split or "")), split)
        group = cell_text(row.get(columns.group or ""))
        entry = (image, label, own, group)
        known = found.setdefault(image, entry)
        if known is not entry:
            if known[1] != label:
                raise ConfigurationError(
                    f"{uri}: row {number}: {printable(image)} is labeled {label!r}, but "
                    f"{known[1]!r} in an earlier row; keep one of them (an image has one class)"
                )
            if known[2:] != entry[2:]:
                raise DataError(
                    f"{uri}: row {number}: {printable(image)} is in another split or group than in "
                    "an earlier row; keep one of them"
                )
            passed_over["repeated row"] += 1
    return list(found.values()), passed_over


def read_split(where: str, text: str, default: str) -> str:
    """Return the split that a cell names.

    Args:
        where: The row, for messages.
        text: The cell.
        default: The split of a row without one.

    Raises:
        ConfigurationError: If the cell holds no usual name of a split.
    """
    if not text or text.lower() == "unassigned":
        return default
    split = split_named(text)
    if split is None:
        raise ConfigurationError(
            f"{where}: the split {text!r} is none of train, val and test; correct it, "
            "or name another column with --split"
        )
    return split


def _key(name: str) -> str:
    """Return the key of an image: its path or address without scheme, outer slashes and suffix."""
    path = name
    if "://" in name:
        parts = urlsplit(redacted(name))
        path = f"{parts.netloc.rpartition('@')[2]}/{parts.path.strip('/')}"
        path += f"?{parts.query}" if parts.query else ""
    path = path.replace("\\", "/").strip("/").removeprefix("./")
    stem, dot, suffix = path.rpartition(".")
    key = stem if dot and "/" not in suffix else path
    return key or "image"
