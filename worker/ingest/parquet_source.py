"""Parquet as a source, with images as bytes or paths, as Hugging Face's `datasets` writes it."""

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from worker.data.reader import BadSample
from worker.errors import ConfigurationError, DataError, first_line
from worker.ingest.image_places import ImagePlaces
from worker.ingest.object_file import ObjectFile
from worker.ingest.source import Item, Source, Unit
from worker.ingest.splits import split_named
from worker.ingest.table_columns import TABLE_OPTIONS, Columns, find_columns
from worker.ingest.table_rows import cell_text, flat_cells
from worker.ingest.table_source import read_split
from worker.store import ObjectInfo, Store

_ROWS_AT_ONCE = 64
_EXTRA = "reading Parquet needs the package pyarrow; install it"


class ParquetSource(Source):
    """Parquet files, a unit per row group.

    Args:
        store: The store that holds them.
        files: The files.
        wanted: The columns that the user names, by `image`, `label`, `split` and `group`.
        root: Address that relative paths start from.

    Raises:
        ConfigurationError: If pyarrow is missing, or the columns cannot be determined.
        DataError: If a file is damaged.
    """

    options = TABLE_OPTIONS

    def __init__(
        self,
        store: Store,
        files: list[ObjectInfo],
        wanted: Mapping[str, str | None],
        root: str,
    ) -> None:
        self._store = store
        self._groups: list[tuple[ObjectInfo, int, str]] = []
        self.passed_over = Counter()
        units: list[Unit] = []
        first_paths: list[str] = []
        self._columns: Columns | None = None
        self._names: dict[str, tuple[str, ...] | None] = {}
        self.classes = None
        splits = [_split_of(info.key) for info in files]
        for info, split in zip(files, splits, strict=True):
            file = self._open(info)
            if self._columns is None and file.num_row_groups:
                first = [flat_cells(row) for row in file.read_row_group(0).slice(0, 20).to_pylist()]
                names = list(
                    dict.fromkeys([*file.schema_arrow.names, *(n for r in first for n in r)])
                )
                self._columns = find_columns(names, first, wanted)
                first_paths = [str(row.get(self._columns.image) or "") for row in first]
                self.classes = _class_names(file.schema_arrow, self._columns.label)
            self._names[info.key] = self._own_names(file, info)
            for group in range(file.num_row_groups):
                self._groups.append((info, group, split if all(splits) else ""))
                count = file.metadata.row_group(group).num_rows
                units.append(Unit(f"{info.key}, row group {group}", info.version, count))
        if self._columns is None:
            raise ConfigurationError(f"{store.uri}: its Parquet files have no rows")
        self.units = tuple(units)
        self._places = ImagePlaces(root, "")
        self._places.settle(first_paths)
        self._bytes = self._holds_bytes(files[0])
        named = sorted({split for _, _, split in self._groups if split})
        kind = "bytes" if self._bytes else "paths"
        with_splits = f" with {', '.join(named)}" if named else ""
        self.description = f"Parquet{with_splits} of image {kind}, {self._columns}"

    def items(self, unit: int) -> Iterator[Item]:
        """Yield the images of a row group, in order."""
        columns = self._columns
        assert columns is not None  # noqa: S101 -- set by the constructor
        info, group, split = self._groups[unit]
        for number, cells in enumerate(self._cells(info, group)):
            row = cells if columns.image in cells else flat_cells(cells)
            image = row.get(columns.image)
            path = image.get("path") if isinstance(image, dict) else image
            path = "" if path is None or isinstance(path, bytes) else str(path)
            key = f"{info.key.removesuffix('.parquet')}/{group:04d}-{number:06d}"
            label = row.get(columns.label)
            if label is None and "." in columns.label:
                label = flat_cells(cells).get(columns.label)
            own = cell_text(row.get(columns.split or ""))
            yield Item(
                key=key,
                label=_label_text(label, self._names[info.key]),
                split=read_split(f"{info.key}: row {number + 1}", own, split),
                group=cell_text(row.get(columns.group or "")),
                load=functools.partial(self._load, image, path),
            )

    def _cells(self, info: ObjectInfo, group: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a row group, a few in memory at a time."""
        try:
            file = self._open(info)
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group]):
                yield from batch.to_pylist()
        except DataError:
            raise
        except Exception as error:  # on damaged bytes, pyarrow may raise anything
            raise self._damaged(info, error) from None

    def _own_names(self, file: Any, info: ObjectInfo) -> tuple[str, ...] | None:
        """Return the class names in a file's schema; each file may number them differently."""
        columns = self._columns
        names = _class_names(file.schema_arrow, columns.label) if columns else None
        if columns and "." not in columns.image and columns.image not in file.schema_arrow.names:
            raise ConfigurationError(
                f"{self._store.uri}{info.key}: has no column {columns.image!r}, unlike others; "
                "pack it by itself"
            )
        if set(names or ()) != set(self.classes or ()):
            raise ConfigurationError(
                f"{self._store.uri}{info.key}: has different class names from the first file; "
                "pack it by itself"
            )
        return names

    def _load(self, image: object, path: str) -> bytes:
        data = image.get("bytes") if isinstance(image, dict) else image
        if isinstance(data, bytes):
            return data
        if not path:
            raise BadSample("missing", "has neither bytes nor a path")
        return self._places.read(path)

    def _holds_bytes(self, info: ObjectInfo) -> bool:
        columns = self._columns
        rows = self._open(info).read_row_group(0).slice(0, 1).to_pylist()
        value = rows[0].get(columns.image) if rows and columns else None
        value = value.get("bytes") if isinstance(value, dict) else value
        return isinstance(value, bytes)

    def _open(self, info: ObjectInfo) -> Any:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise ConfigurationError(_EXTRA) from None
        try:
            return parquet.ParquetFile(
                arrow.PythonFile(ObjectFile(self._store, info.key, 0, info.size), mode="r")
            )
        except (arrow.ArrowException, OSError) as error:
            raise self._damaged(info, error) from None

    def _damaged(self, info: ObjectInfo, error: Exception) -> DataError:
        return DataError(
            f"{self._store.uri}{info.key}: cannot be read ({first_line(error)}); fetch it again"
        )


def _label_text(value: object, names: tuple[str, ...] | None) -> str | None:
    if names and isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else None
    return cell_text(value) or None


def _split_of(key: str) -> str:
    """Return the split that a file's path names, such as `train-00000-of-00002.parquet`."""
    parts = key.split("/")
    words = [*parts[:-1], parts[-1].partition("-")[0].removesuffix(".parquet")]
    return next(filter(None, map(split_named, reversed(words))), "")


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Return the class names that `datasets` keeps in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None
