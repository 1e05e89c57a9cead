"""Leftovers of dead attempts are removed, and nothing else."""

from pathlib import Path

import boto3
import pytest

from tests.support.commits import PARTS, write_commit
from tests.support.stores import keys
from worker.checkpoint import retention
from worker.checkpoint.cleanup import clean
from worker.checkpoint.commit import (
    CommitName,
    write_parts,
)
from worker.checkpoint.tensor_files import stream_bytes
from worker.store import open_store


@pytest.mark.parametrize("kind", ["s3", "local"])
def test_what_dead_attempts_have_left_is_removed(
    kind: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts without a commit and broken-off uploads of older attempts, and nothing of others."""
    store = open_store(f"{bucket}/run" if kind == "s3" else f"{tmp_path}/run")
    for name in (CommitName(5, 1), CommitName(6, 3), CommitName(7, 2)):
        write_parts(store, name, {"state.json": stream_bytes(b"{}")})
    dead = "checkpoints/00000005-000001/model.safetensors"
    if kind == "s3":
        where = {"Bucket": bucket.removeprefix("s3://"), "Key": f"run/{dead}"}
        client = boto3.client("s3")
        client.create_multipart_upload(**where)
    else:
        (tmp_path / "run" / dead).with_name(".tmp-model.safetensors-x").write_bytes(b"half")
    for name in (CommitName(4, 1), CommitName(8, 2)):
        write_commit(store, name, PARTS)
    clean(store, CommitName(8, 2), trusted=[CommitName(8, 2)], keep=9, kept_steps=())
    assert "checkpoints/00000005-000001/state.json" in keys(store), "it may not be dead yet"
    monkeypatch.setattr(retention, "DEAD_AFTER_SECONDS", -1.0)
    clean(store, CommitName(8, 2), trusted=[CommitName(8, 2)], keep=9, kept_steps=())
    names = {key.split("/")[1] for key in keys(store) if key.startswith("checkpoints/")}
    assert names == {"00000004-000001", "00000006-000003", "00000007-000002", "00000008-000002"}
    if kind == "s3":
        assert "Uploads" not in client.list_multipart_uploads(Bucket=where["Bucket"])
    else:
        assert not list(tmp_path.rglob(".tmp-*"))
