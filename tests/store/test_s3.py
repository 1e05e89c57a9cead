"""Uploads in parts."""

import tracemalloc
from pathlib import Path
from typing import Any

import boto3
import pytest

from worker.store import Store
from worker.store.s3 import S3Store


def test_what_dead_uploads_have_left_is_removed(store: Store, tmp_path: Path) -> None:
    if isinstance(store, S3Store):
        for name in ("x", "xy"):
            where = {"Bucket": store.bucket, "Key": f"{store.prefix}{name}"}
            boto3.client("s3").create_multipart_upload(**where)
    else:
        store.put("xy", b"")
        for name in ("x", "xy"):
            (tmp_path / "prefix" / f".tmp-{name}-1").write_bytes(b"half")
    assert store.abort_uploads("x") == 1
    assert store.abort_uploads("x") == 0
    assert store.abort_uploads("xy") == 1


def test_leftovers_beyond_the_first_page_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []

    class Client:
        def list_multipart_uploads(self, **query: Any) -> Any:
            marker = query.get("KeyMarker", "")
            uploads = [{"UploadId": f"{marker}{n}", "Key": "x"} for n in range(2)]
            more = {"IsTruncated": True, "NextKeyMarker": "x", "NextUploadIdMarker": "1"}
            return {"Uploads": uploads, **({} if marker else more)}

        def abort_multipart_upload(self, **upload: Any) -> Any:
            removed.append(upload["UploadId"])

    monkeypatch.setattr(S3Store, "_s3", Client())
    assert S3Store("bucket", "").abort_uploads("x") == 4
    assert removed == ["0", "1", "x0", "x1"]


def test_an_upload_holds_a_few_parts_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1 GiB, at most the four parts that are under way and the next one, twice each."""

    class Client:
        def create_multipart_upload(self, **_: Any) -> Any:
            return {"UploadId": "1"}

        def upload_part(self, **part: Any) -> Any:
            return {"ETag": str(len(part["Body"]))}

        def complete_multipart_upload(self, **_: Any) -> Any:
            return {"ETag": "1"}

    monkeypatch.setattr(S3Store, "_s3", Client())
    piece = bytes(1 << 20)
    tracemalloc.start()
    S3Store("bucket", "").put_stream("x", 1 << 30, (piece for _ in range(1024)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 160 << 20
