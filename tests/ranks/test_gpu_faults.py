"""GPUs that cannot start are named."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from worker.errors import ConfigurationError, InfrastructureError
from worker.ranks import gpu_faults as cuda

DRIVER_OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (DRIVER_OLD, ConfigurationError, r"GPU 1 of .*too old.*update the node's driver"),
        (
            "Found no NVIDIA driver on your system.",
            ConfigurationError,
            "GPU 1 of .*no NVIDIA driver",
        ),
        (
            "CUDA error: system not yet initialized (error 802)",
            InfrastructureError,
            "is nvidia-fabricmanager running",
        ),
        ("CUDA error: invalid device ordinal", InfrastructureError, "CUDA cannot start.*ordinal"),
        (
            "CUDA driver initialization failed, you might not have a CUDA gpu.",
            InfrastructureError,
            "initialization failed",
        ),
        (
            "CUDA error: unknown error\nCompile with",
            InfrastructureError,
            "error; dmesg may say why",
        ),
    ],
)
def test_a_gpu_that_cannot_start_is_named(
    text: str, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(torch.cuda, "set_device", fail)
    with pytest.raises(kind, match=said):
        cuda.start_cuda(torch.device("cuda", 1))


@pytest.mark.parametrize(
    ("environ", "nodes", "sign"),
    [
        ({}, [], ""),
        ({}, ["nvidia0"], "nvidia0 can be opened"),
        ({}, ["nvidiactl", "nvidia-uvm"], ""),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["nvidia0"], ""),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ["nvidia0"], ""),
        ({"CUDA_VISIBLE_DEVICES": "0"}, [], ""),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, [], ""),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, [], ""),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-8f6d"}, [], "NVIDIA_VISIBLE_DEVICES names a GPU"),
        ({"SLURM_JOB_GPUS": "0,1"}, [], "SLURM_JOB_GPUS names a GPU"),
        ({"SLURM_JOB_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "-1"}, [], ""),
    ],
)
def test_what_shows_that_a_process_was_given_a_gpu(
    environ: dict[str, str], nodes: list[str], sign: str, tmp_path: Path
) -> None:
    for name in nodes:
        (tmp_path / name).touch()
    found = cuda.sign_of_gpu(environ, tmp_path)
    assert found.removeprefix(f"{tmp_path}/") == sign


def test_a_gpu_of_another_job_is_no_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its device node is there, but Slurm's cgroup forbids opening it."""
    (tmp_path / "nvidia0").touch()

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    assert not cuda.sign_of_gpu({}, tmp_path)


def test_a_node_whose_gpus_are_broken_does_not_train_on_its_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "GPU-8f6d")

    def zeros(*size: int, device: str) -> None:
        raise RuntimeError(
            "Unexpected error from cudaGetDeviceCount(). Error 803: unsupported display driver / cuda driver combination"
        )

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(
        ConfigurationError, match=r"Error 803.*names a GPU; set CUDA_VISIBLE_DEVICES= "
    ):
        cuda.count_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda.count_gpus() == 0


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA driver error: unspecified launch failure",
        "Triton Error [CUDA]: unknown error",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_a_gpu_that_fails_is_named_with_its_uuid(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda._name_of.cache_clear()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="8f6d")
    )
    error = cuda.gpu_error(RuntimeError(text))
    assert isinstance(error, InfrastructureError)
    assert "GPU 3 (GPU-8f6d) of " in str(error)
    cuda._name_of.cache_clear()


def test_a_started_gpu_computes_products_as_it_computes_convolutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    monkeypatch.setattr(cuda, "_name_of", lambda device: "")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        cuda.start_cuda(torch.device("cuda", 0))
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
