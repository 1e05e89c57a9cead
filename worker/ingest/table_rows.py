"""Rows of a table: CSV, TSV, SageMaker's .lst, JSON and JSON Lines, as dictionaries of cells."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from worker.errors import ConfigurationError, DataError
from worker.ingest.table_columns import looks_like_path
from worker.ingest.web import read_web
from worker.store import read_uri
from worker.text import read_text

TABLES = (".csv", ".tsv", ".lst", ".jsonl", ".ndjson", ".manifest", ".json")
_MAX_BYTES = 4 << 30
_MAX_DEPTH = 6
_WHOLE = re.compile(r"\d+\.0+")
_WITHOUT_HEADER = {2: ("image", "label"), 3: ("split", "image", "label")}
"""Columns of Vertex AI's CSV files, which have no header."""


def read_table(uri: str) -> list[dict[str, Any]]:
    """Return the rows of a table; nested JSON objects become columns with dotted names.

    Raises:
        ConfigurationError: If it cannot be read, or is empty.
        DataError: If a line is malformed; the message names it.
    """
    try:
        on_web = uri.lower().startswith(("http://", "https://"))
        text = read_text(read_web(uri) if on_web else read_uri(uri, _MAX_BYTES))
    except ValueError as error:
        raise DataError(f"{uri}: {error}") from None
    path = uri.partition("?")[0]
    suffix = path[path.rfind(".") :].lower()
    if suffix in (".csv", ".tsv", ".lst"):
        rows = list(_separated(uri, text, suffix))
    elif suffix == ".json":
        rows = list(_objects(uri, text))
    else:
        rows = list(_lines(uri, text))
    if not rows:
        raise ConfigurationError(f"{uri}: has no rows")
    return rows


def _separated(uri: str, text: str, suffix: str) -> Iterator[dict[str, Any]]:
    first = text.partition("\n")[0]
    delimiter = "\t" if suffix != ".csv" or ("\t" in first and "," not in first) else ","
    if delimiter == "," and ";" in first and "," not in first:
        delimiter = ";"
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: tuple[str, ...] | None = None
    try:
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header, is_row = _header(uri, [cell.strip() for cell in cells], suffix)
                if not is_row:
                    continue
            if len(cells) != len(header):
                raise DataError(
                    f"{uri}: line {lines.line_num} has {len(cells)} cells, but the first line "
                    f"has {len(header)}; correct it (quote cells that hold the delimiter)"
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{uri}: line {lines.line_num}: {error}; correct it") from None


def _header(uri: str, cells: list[str], suffix: str) -> tuple[tuple[str, ...], bool]:
    """Return the names of the columns, and whether the first line is already a row."""
    if suffix == ".lst":  # index, label, path (MXNet's and SageMaker's image lists)
        return ("index", "label", "image"), True
    if any(map(looks_like_path, cells)):
        if len(cells) not in _WITHOUT_HEADER:
            raise ConfigurationError(
                f"{uri}: the first line is not a header; add one that names the columns"
            )
        return _WITHOUT_HEADER[len(cells)], True
    if len(set(cells)) < len(cells):
        twice = next(cell for cell in cells if cells.count(cell) > 1)
        raise ConfigurationError(f"{uri}: two columns are named {twice!r}; rename one")
    return tuple(cells), False


def _lines(uri: str, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError(f"{uri}: line {number} is not JSON; correct it") from None
            if not isinstance(row, dict):
                raise DataError(f"{uri}: line {number} is not a JSON object; correct it")
            yield flat_cells(row)


def _objects(uri: str, text: str) -> Iterator[dict[str, Any]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{uri}: is not JSON; correct it") from None
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else None
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise DataError(f"{uri}: is not a list of objects; write one object per image")
    yield from map(flat_cells, data)


def flat_cells(row: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Return the cells of a row, nested objects and lists under dotted names: `a.b`, `a.0.b`."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(n): part for n, part in enumerate(value)}
        if isinstance(value, dict) and depth < _MAX_DEPTH:
            found |= flat_cells(value, f"{prefix}{name}.", depth + 1)
        else:
            found[f"{prefix}{name}"] = value
    return found


def cell_text(value: object) -> str:
    """Return a cell as text: empty if it is missing, and 3 for 3.0, as pandas writes some integers.

    A list of one value counts as that value.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    text = str(value).strip()
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text
