"""What `worker pack` reads: tables with mistakes, and damaged records beside an index."""

import tempfile
from pathlib import Path
from random import Random

from tests.fuzz.memory import MemoryStore
from tests.fuzz.mutation import damaged, damaged_json
from worker.errors import DataError
from worker.ingest.dataset_record import DATASET_NAME, read_dataset_record
from worker.ingest.table_source import TableSource

_ROWS = [
    {"image": f"{n}.jpg", "label": "ab"[n % 2], "split": ("train", "val")[n % 2], "box": {"x": n}}
    for n in range(4)
]
_CSV = "image,label,split\n" + "".join(f"{r['image']},{r['label']},{r['split']}\n" for r in _ROWS)
_RECORD = {
    "version": 1,
    "pack": "0" * 16,
    "made_by": "0.1",
    "source": "photos/",
    "kind": "image folder",
    "options": {"val": 0.1},
    "classes": ["a", "b"],
    "splits": {"train": {"images": 3, "bytes": 9, "counts": [1, 2]}},
    "bad": {"x": "cannot be decoded"},
    "bad_count": 1,
    "passed_over": {".txt file": 1},
    "duplicates": 0,
    "duplicate_keys": [["x", "y"]],
    "near_duplicates": None,
    "near_duplicate_keys": [],
    "resized": 0,
    "bytes_before": 9,
    "digest": "0" * 64,
}


def table_case(chance: Random) -> tuple[str, bytes]:
    """A table in one of its forms, damaged."""
    form = chance.choice(("csv", "tsv", "lst", "jsonl", "json"))
    if form == "json":
        return form, damaged_json({"images": _ROWS}, chance)
    if form == "jsonl":
        return form, b"\n".join(damaged_json(row, chance) for row in _ROWS)
    text = _CSV if form == "csv" else _CSV.replace(",", "\t")
    return form, damaged(text.encode(), chance)


def run_table(case: tuple[str, bytes]) -> str:
    form, data = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"table.{form}")
        path.write_bytes(data)
        try:
            source = TableSource(str(path), {}, None)
        except DataError as error:
            assert "\n" not in str(error)
            return "bad sample"
        for unit in range(len(source.units)):
            for item in source.items(unit):
                assert item.key
                assert item.label is not None
                assert item.split in ("", "train", "val", "test")
    return "taken"


def dataset_case(chance: Random) -> bytes:
    return damaged_json(_RECORD, chance)


def run_dataset(data: bytes) -> str:
    record = read_dataset_record(MemoryStore({DATASET_NAME: data}))
    return "taken" if record else "bad sample"
