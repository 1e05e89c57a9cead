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


def encode_part(predictions: Sequence[Prediction], form: Format, names: Sequence[str]) -> bytes:
    """Return the file of a part; equal predictions give equal bytes.

    Args:
        predictions: The predictions, in the order of the images.
        form: The format.
        names: Names of the classes; CSV has a column for each if all of them are listed.
    """
    rounded = [
        one._replace(classes=tuple((name, round(p, _DIGITS)) for name, p in one.classes))
        for one in predictions
    ]
    if form == "jsonl":
        return b"".join(_line(one) for one in rounded)
    if form == "csv":
        return _csv(rounded, names)
    return _parquet(rounded)


def _line(one: Prediction) -> bytes:
    row: dict[str, Any] = {"image": one.key}
    if one.error:
        row["error"] = one.error
    else:
        row["classes"] = dict(one.classes)
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _csv(predictions: Sequence[Prediction], names: Sequence[str]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    count = max((len(one.classes) for one in predictions), default=0)
    if count == len(names):  # a table of all probabilities
        writer.writerow(["image", "class", *names, "error"])
    else:
        pairs = (f"{kind}_{n}" for n in range(1, count + 1) for kind in ("class", "probability"))
        writer.writerow(["image", *pairs, "error"])
    for one in predictions:
        chances = dict(one.classes)
        if count == len(names):
            first = one.classes[0][0] if one.classes else ""
            cells: list[Any] = [first, *(chances.get(name, "") for name in names)]
        else:
            cells = [cell for pair in one.classes for cell in pair] or [""] * (2 * count)
        writer.writerow([one.key, *cells, one.error])
    return buffer.getvalue().encode()


def _parquet(predictions: Sequence[Prediction]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "image": [one.key for one in predictions],
            "classes": [[name for name, _ in one.classes] for one in predictions],
            "probabilities": [[p for _, p in one.classes] for one in predictions],
            "error": [one.error or None for one in predictions],
        },
        schema=pyarrow.schema(
            [
                ("image", pyarrow.string()),
                ("classes", pyarrow.list_(pyarrow.string())),
                ("probabilities", pyarrow.list_(pyarrow.float64())),
                ("error", pyarrow.string()),
            ]
        ),
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


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

        for row in pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist():
            yield row["image"], (row["classes"] or [""])[0], row["error"] or ""
