"""The results of a part as a file: JSON lines, CSV or Parquet."""

import csv
import importlib.util
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from worker.apply.prediction_plan import Format
from worker.errors import ConfigurationError

_DIGITS = 6


class Prediction(NamedTuple):
    """An image with its most likely classes, or with the reason why there are none."""

    key: str
    """Its key, path or address."""
    classes: tuple[tuple[str, float], ...]
    """Classes with their probabilities, the most likely first."""
    error: str
    """Why it could not be predicted; empty if it was."""


def require_format(form: Format) -> None:
    """Raise `ConfigurationError` if a format needs a package that is not installed."""
    if form == "parquet" and not importlib.util.find_spec("pyarrow"):
        raise ConfigurationError("--format parquet: needs the package pyarrow; pip install pyarrow")


class PartWriter:
    """The file of a part, encoded batch by batch; equal predictions give equal bytes.

    Args:
        form: The format.
        names: Names of the classes; CSV has a column for each if all of them are listed.
        count: The number of classes that are listed for an image.
    """

    def __init__(self, form: Format, names: Sequence[str], count: int) -> None:
        self._form = form
        self._names = names
        self._count = count
        self._text = io.StringIO(newline="")
        self._batches: list[Any] = []
        if form == "csv":
            csv.writer(self._text, lineterminator="\n").writerow(self._head())

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Add predictions, in the order of the images."""
        if self._form == "jsonl":
            self._text.writelines(map(_line, predictions))
        elif self._form == "csv":
            writer = csv.writer(self._text, lineterminator="\n")
            writer.writerows(map(self._cells, predictions))
        else:
            self._batches.append(_record_batch(predictions))

    def finish(self) -> bytes:
        """Return the file."""
        if self._form != "parquet":
            return self._text.getvalue().encode()
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        table = pyarrow.Table.from_batches(self._batches, _schema()).combine_chunks()
        pyarrow.parquet.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()

    def _head(self) -> list[str]:
        if self._lists_all:
            return ["image", "class", *self._names, "error"]
        numbers = range(1, self._count + 1)
        pairs = (f"{kind}_{n}" for n in numbers for kind in ("class", "probability"))
        return ["image", *pairs, "error"]

    def _cells(self, one: Prediction) -> list[Any]:
        if self._lists_all:
            chances = {name: _rounded(p) for name, p in one.classes}
            first = one.classes[0][0] if one.classes else ""
            return [one.key, first, *(chances.get(name, "") for name in self._names), one.error]
        cells = [cell for name, p in one.classes for cell in (name, _rounded(p))]
        return [one.key, *(cells or [""] * (2 * self._count)), one.error]

    @property
    def _lists_all(self) -> bool:
        return self._count == len(self._names)


def _rounded(probability: float) -> float:
    return round(probability, _DIGITS)


def _line(one: Prediction) -> str:
    row: dict[str, Any] = {"image": one.key}
    if one.error:
        row["error"] = one.error
    else:
        row["classes"] = {name: _rounded(p) for name, p in one.classes}
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _schema() -> Any:
    import pyarrow

    return pyarrow.schema(
        [
            ("image", pyarrow.string()),
            ("classes", pyarrow.list_(pyarrow.string())),
            ("probabilities", pyarrow.list_(pyarrow.float64())),
            ("error", pyarrow.string()),
        ]
    )


def _record_batch(predictions: Sequence[Prediction]) -> Any:
    import pyarrow

    columns = {
        "image": [one.key for one in predictions],
        "classes": [[name for name, _ in one.classes] for one in predictions],
        "probabilities": [[_rounded(p) for _, p in one.classes] for one in predictions],
        "error": [one.error or None for one in predictions],
    }
    return pyarrow.RecordBatch.from_pydict(columns, schema=_schema())


def decode_part(data: bytes, form: Format) -> Iterator[tuple[str, str, str]]:
    """Yield the key, the first class and the error of each image in a file.

    Raises `ValueError` if the file is damaged.
    """
    if form == "jsonl":
        for line in data.splitlines():
            row = json.loads(line)
            classes = row.get("classes") or {}
            yield row["image"], next(iter(classes), ""), row.get("error", "")
    elif form == "csv":
        rows = csv.reader(io.StringIO(data.decode(), newline=""))
        next(rows, None)
        for cells in rows:
            yield cells[0], cells[1] if len(cells) > 2 else "", cells[-1]
    else:
        import pyarrow.parquet

        for row in pyarrow.parquet.read_table(io.BytesIO(data), use_threads=False).to_pylist():
            yield row["image"], (row["classes"] or [""])[0], row["error"] or ""
