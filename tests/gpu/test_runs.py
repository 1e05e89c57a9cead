"""`worker` commands on a GPU, in processes of their own."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.support.processes import Run, Start
from worker.store import Store, open_store

pytestmark = pytest.mark.gpu
Job = dict[str, Any]
Write = Callable[[Job], str]
_MIB = 1 << 20


def train(run: Run, manifest: str, **more: Any) -> None:
    ended = run("train", manifest, **more)
    assert ended.code == 0, ended.err


def final(store: Store) -> dict[str, Tensor]:
    return safetensors.torch.load(store.get("final/model.safetensors"))


def with_output(job: Job, folder: Path, **train: Any) -> Job:
    return {**job, "output": f"{folder}/", "train": {**job["train"], **train}}


def test_a_run_says_which_gpu_it_ran_on(run: Run, write: Write, job: Job, tmp_path: Path) -> None:
    path = write(job)
    for command in ("check", "plan"):
        ended = run(command, path)
        assert ended.code == 0, ended.out + ended.err
        assert torch.cuda.get_device_name(0) in ended.out or command == "plan"
    train(run, path)
    store = open_store(job["output"])
    (key,) = [info.key for info in store.list() if info.key.endswith("environment.json")]
    facts = json.loads(store.get(key))
    assert facts["device"] == torch.cuda.get_device_name(0)
    assert facts["backend"] == "nccl"
    assert run("audit", job["output"]).code == 0
    report = tmp_path / "report.html"
    assert run("report", job["output"], "--out", str(report)).code == 0
    assert "GPU-minutes" in report.read_text()


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp16"},
        {"precision": "fp32", "ema": 0.9},
        {"activation_checkpointing": True},
        {"sync_batch_norm": True},
        {"micro_batch": 5},
        {"label_smoothing": 0.1},
    ],
    ids=repr,
)
def test_every_way_of_training_comes_to_its_end(
    settings: Job, run: Run, write: Write, job: Job
) -> None:
    job["train"] |= settings
    job["data"]["augment"] |= {"mixup": 0.2, "cutmix": 1.0}
    train(run, write(job))


def test_a_compiled_model_trains(start: Start, write: Write, job: Job) -> None:
    job["model"]["backbone"] = "resnet18"
    job["train"] |= {"compile": True, "ema": 0.9, "epochs": 1}
    ended = start("train", write(job)).wait(300)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_and_resumed_ends_with_the_same_bytes(
    number: signal.Signals, run: Run, start: Start, write: Write, job: Job, tmp_path: Path
) -> None:
    """In bf16: by torch's default algorithms fp32 gives other bytes every time."""
    job["checkpoint"] = {"every_steps": 2}
    whole = with_output(job, tmp_path / "whole", precision="bf16", ema=0.9)
    train(run, write(whole))
    cut = with_output(job, tmp_path / "cut", precision="bf16", ema=0.9)
    process = start("train", write(cut))
    process.wait_for('"event": "step"')
    began = time.monotonic()
    process.send(number)
    code = process.wait().code
    assert code == (75 if number == signal.SIGTERM else -number) or code == 0
    assert time.monotonic() - began < 15
    train(run, write(cut))
    found, expected = final(open_store(cut["output"])), final(open_store(whole["output"]))
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


@pytest.mark.parametrize("gpu_first", [True, False])
def test_a_job_moves_between_gpus_and_cpus(
    gpu_first: bool, run: Run, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for on_gpu, epochs in ((gpu_first, 1), (not gpu_first, 2)):
        if on_gpu:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        job["train"]["epochs"] = epochs
        train(run, write(job))
    assert run("audit", job["output"]).code == 0


def test_pictures_decoded_by_the_gpu_are_the_same_ones(
    run: Run, write: Write, job: Job, damaged: Store, tmp_path: Path
) -> None:
    """One of them broken, which nvJPEG meets beside sound ones."""
    key = next(info.key for info in damaged.list() if info.key.endswith(".tar"))
    data = bytearray(damaged.get(key))
    scan = data.index(b"\xff\xda")
    data[scan + 4 : scan + 10] = bytes(6)
    damaged.put(key, bytes(data))
    assert run("index", damaged.uri, "--overwrite").code == 0
    bad = {}
    for decoder in ("cpu", "cuda"):
        changed = with_output(job, tmp_path / decoder)
        changed["data"] |= {"train": damaged.uri, "decoder": decoder, "error_budget": 0.1}
        ended = run("train", write(changed))
        assert ended.code == 0, ended.err
        store = open_store(changed["output"])
        (listed,) = [
            info.key for info in store.list() if info.key.endswith("bad-samples/train.json")
        ]
        bad[decoder] = json.loads(store.get(listed))
    assert len(bad["cpu"]) == 1
    assert bad["cpu"] == bad["cuda"]


def small_memory() -> None:
    """A GPU with room for some images beside the model, its gradients and moments."""
    _limit(420)


def tiny_memory() -> None:
    """A GPU with room for the model and nothing else."""
    _limit(30)


def _limit(mebibytes: int) -> None:
    from worker.ranks import gpu_faults as cuda

    start_cuda = cuda.start_cuda

    def start(device: torch.device) -> None:
        start_cuda(device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(mebibytes * _MIB / total, device)

    from worker.ranks import process_group as distributed

    setattr(distributed, "start_cuda", start)


def test_a_batch_beyond_memory_is_trained_in_parts(run: Run, write: Write, job: Job) -> None:
    job["model"]["backbone"] = "resnet18"
    job["data"]["image_size"] = 224
    job["train"] |= {"batch_size": 48, "epochs": 1}
    ended = run("train", write(job), sabotage=small_memory)
    assert ended.code == 0, ended.err
    assert "out of memory" in ended.err


def test_a_model_beyond_memory_is_one_line(run: Run, write: Write, job: Job) -> None:
    job["model"]["backbone"] = "resnet18"
    job["data"]["image_size"] = 224
    ended = run("train", write(job), sabotage=tiny_memory)
    assert ended.code == 78, ended.err
    assert "memory" in ended.events[-1]["message"]
    assert "Traceback" not in ended.err


def test_more_ranks_than_gpus_are_refused(run: Run, write: Write, job: Job) -> None:
    ended = run("train", "--nproc", "2", write(job))
    assert ended.code == 78
    assert "set at most 1" in ended.err


def test_a_model_predicts_the_same_on_both(
    run: Run, write: Write, job: Job, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run, write(job))
    rows = []
    for visible in ("0", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        ended = run("predict", job["output"], str(pictures / "val"))
        assert ended.code == 0, ended.err
        rows.append(ended.out)
    assert rows[0] == rows[1]


def test_rates_are_found_on_a_gpu(run: Run, write: Write, job: Job) -> None:
    ended = run("find-rates", "--steps", "20", write(job))
    assert ended.code == 0, ended.err
