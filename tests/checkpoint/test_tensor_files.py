"""Checkpoints are plain safetensors, read in the memory that they take."""

import functools
import json
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.support.processes import Run, Start, Write
from tests.support.sabotage import slow_steps
from worker.checkpoint import commit
from worker.checkpoint.commit import (
    CommitName,
    publish_commit,
    read_commit,
    write_parts,
)
from worker.checkpoint.tensor_files import read_tensors, stream_bytes, stream_tensors
from worker.store import open_store


def test_a_checkpoint_is_plain_safetensors() -> None:
    tensors = {
        "wide": torch.randn(3, 4, dtype=torch.float64),
        "half": torch.randn(5).to(torch.bfloat16),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "flag": torch.tensor(data=True),
        "none": torch.empty(0, 3),
        "count": torch.tensor(7),
    }
    stream = stream_tensors(tensors)
    data = b"".join(stream.pieces())
    assert len(data) == stream.size
    loaded = safetensors.torch.load(data)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    assert b"".join(stream_tensors(loaded).pieces()) == data


def test_reading_takes_the_memory_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "_READ", 1 << 16)
    store, name = open_store(str(tmp_path)), CommitName(1, 1)
    tensors = {f"t{number}": torch.randn(250_000) for number in range(8)}
    streams = {
        "model.safetensors": stream_tensors(tensors),
        "optimizer.safetensors": stream_tensors({}),
        "state.json": stream_bytes(b"{}"),
    }
    publish_commit(store, name, write_parts(store, name, streams))
    beats: list[int] = []
    tracemalloc.start()
    parts = read_commit(store, name, lambda: beats.append(1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parts
    size = len(parts["model.safetensors"])
    assert size > 8_000_000
    assert peak < 1.15 * size
    assert len(beats) > 100
    views = read_tensors(parts["model.safetensors"])
    assert all(torch.equal(views[key], tensor) for key, tensor in tensors.items())
    views["t3"].zero_()  # they are views: to change one changes the file
    assert read_tensors(parts["model.safetensors"])["t3"].abs().sum() == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}"[:1],
        (67).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(67),
        (67).to_bytes(8, "little")
        + b'{"a":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}}'.ljust(67),
        (67).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'.ljust(67)
        + bytes(8),
    ],
)
def test_what_is_no_safetensors_file_is_told(data: bytes) -> None:
    with pytest.raises(ValueError, match="safetensors|offsets"):
        read_tensors(bytearray(data))


def test_a_commit_that_holds_no_tensors_is_passed_over(
    run: Run, start: Start, write: Write, job: dict[str, Any]
) -> None:
    """Its digests fit, as whoever wrote it believed in it."""
    running = start("train", write(job), sabotage=functools.partial(slow_steps, 1.0))
    running.wait_for("step 1/")
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    store = open_store(job["output"])
    newest = commit.list_commits(store)[0]
    whole = read_commit(store, newest)
    assert whole
    streams = {part: stream_bytes(bytes(data)) for part, data in whole.items()}
    streams["model.safetensors"] = stream_bytes(b"not one tensor")
    name = CommitName(newest.step + 1, newest.attempt)
    state = json.loads(bytes(whole["state.json"])) | {"step": name.step}
    streams["state.json"] = stream_bytes(json.dumps(state).encode())
    publish_commit(store, name, write_parts(store, name, streams))
    ended = run("train", write(job))
    assert ended.code == 0, ended.err
    assert f"checkpoint {name} cannot be read (not a safetensors file" in ended.err
    assert f"resumes after step {newest.step}" in ended.err
