"""Scans of shards, staged beside them until the entire index is written."""

import io
import json
from collections import Counter

import numpy as np

from worker.array_files import load_arrays
from worker.data.shard_scan import Scan
from worker.data.tar_sample import SampleRow
from worker.data.tar_source import Tar

_VERSION = 4
_ROW_DTYPE = np.dtype(
    [(name, "<u8") for name in SampleRow._fields if name != "label"] + [("label", "<u4")]
)


def scan_name(tar: Tar) -> str:
    return f"{tar.name}.scan.npz"


def encode_staged(scan: Scan, tar: Tar, label_field: str, max_pixels: int | None) -> bytes:
    labels = sorted({row.label for row in scan.rows})
    numbers = {label: number for number, label in enumerate(labels)}
    rows = [(*row[:-1], numbers[row.label]) for row in scan.rows]
    facts = {
        "version": _VERSION,
        "label_field": label_field,
        "max_pixels": max_pixels,
        "tar": tar.version,
        "bytes": scan.bytes,
        "sha256": scan.sha256,
        "labels": labels,
        "passed_over": scan.passed_over,
        "highest": scan.highest,
    }
    buffer = io.BytesIO()
    np.savez(buffer, rows=np.array(rows, dtype=_ROW_DTYPE), facts=np.array(json.dumps(facts)))
    return buffer.getvalue()


def decode_staged(data: bytes, tar: Tar, label_field: str, max_pixels: int | None) -> Scan | None:
    staged = load_arrays(data)
    facts = json.loads(staged["facts"].item())
    # tolist() also turns numpy scalars into Python ints, so that a staged scan equals a fresh one.
    rows = staged["rows"].tolist()
    expected = (_VERSION, tar.size, tar.version, label_field)
    if (facts["version"], facts["bytes"], facts["tar"], facts["label_field"]) != expected:
        return None
    if max_pixels and facts["max_pixels"] != max_pixels:
        return None
    return Scan(
        bytes=facts["bytes"],
        sha256=facts["sha256"],
        rows=[SampleRow._make((*row[:-1], facts["labels"][row[-1]])) for row in rows],
        passed_over=Counter(facts["passed_over"]),
        highest=facts["highest"],
    )
