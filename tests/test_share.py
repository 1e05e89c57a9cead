"""A checkpoint is read by one rank, once and without a second copy, and given to the others."""

import functools
import json
import signal
import socket
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.learners import everything, manifest_of
from tests.support.processes import Run, Start, Write, in_fresh_process
from tests.support.sabotage import slow_steps
from tests.support.snapshots import snapshot_of
from worker.checkpoint import commit
from worker.checkpoint.commit import CommitName, publish_commit, read_commit, write_parts
from worker.checkpoint.tensor_files import read_tensors, stream_bytes, stream_tensors
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.model.learner import Learner, build_learner
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.store import open_store
from worker.train.broadcast_state import share_learner


def trained_learner(rank: int, name: str) -> Learner:
    """A learner whose tensors differ from rank to rank; only rank 0's has been trained."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 3))
    settings = manifest_of([{"match": "*"}], {"ema": 0.5, "precision": "fp16"}, name=name)
    learner = build_learner(model, everything(model, 1e-2), settings, torch.device("cpu"))
    if rank == 0:
        for _ in range(2):
            loss = learner.model(torch.randn(4, 3, 8, 8)).sum()
            learner.scaler.scale(loss).backward()
            learner.optimizer.step()
        assert learner.average
        learner.average.update_parameters(learner.model)
    return learner


def share(folder: Path, name: str) -> None:
    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        with process_group(rank, listener, StopFlag()):
            learner = trained_learner(rank.rank, name)
            share_learner(learner)
            parts = snapshot_of(learner, {"step": 2})
            # It trains on, too.
            learner.model(torch.randn(4, 3, 8, 8)).sum().backward()
            learner.optimizer.step()
        for part, data in parts.items():
            (folder / f"{rank.rank}-{part}").write_bytes(data)

    assert (
        run_ranks(
            one_node(3),
            run,
            StopFlag(),
        )
        == 0
    )


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_all_ranks_get_what_rank_0_has(name: str, tmp_path: Path) -> None:
    in_fresh_process(share, tmp_path, name)
    parts = [path.name.removeprefix("0-") for path in tmp_path.glob("0-*")]
    assert len(parts) == 4
    for part in parts:
        first = (tmp_path / f"0-{part}").read_bytes()
        assert len(first) > 10
        for rank in (1, 2):
            assert (tmp_path / f"{rank}-{part}").read_bytes() == first, part


def note_reads(folder: str) -> None:
    """Every rank that reads a checkpoint leaves a file."""
    import torch.distributed as dist

    from worker.train import resume

    real = getattr(resume, "read_commit")

    def read(*arguments: Any) -> Any:
        Path(folder, f"read by {dist.get_rank()}").touch()
        return real(*arguments)

    setattr(resume, "read_commit", read)


def test_one_rank_reads_for_all(
    start: Start, run: Run, write: Write, job: dict[str, Any], tmp_path: Path
) -> None:
    slow = functools.partial(slow_steps, 0.3)
    running = start("train", "--nproc", "2", write(job), sabotage=slow)
    running.wait_for("step 1/")
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    noting = functools.partial(note_reads, str(tmp_path))
    ended = run("train", "--nproc", "3", write(job), sabotage=noting)
    assert ended.code == 0, ended.err
    assert [path.name for path in tmp_path.glob("read by *")] == ["read by 0"]


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
    running = start("train", write(job), sabotage=functools.partial(slow_steps, 0.3))
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
    assert f"checkpoint {name} cannot be read (no safetensors file" in ended.err
    assert f"resumes after step {newest.step}" in ended.err
