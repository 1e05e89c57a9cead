"""Starting CUDA, and telling a broken GPU from a broken program or a missing GPU."""

import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import torch

from worker.errors import ConfigurationError, InfrastructureError, WorkerError, first_line

_FABRIC = "802"  # cudaErrorSystemNotReady, as on NVSwitch machines without the fabric manager
_WRONG_DRIVER = (
    "driver on your system is too old",
    "no NVIDIA driver",
    "unsupported display driver",
)
_BROKEN = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "cuDNN error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
)
# Such an error also contains "CUDA error", but is due to a mistake in the program, such as a label
# out of range.
_OWN_BUG = "device-side assert"


_HIDDEN = ("", "-1", "NoDevFiles")
"""Values of `CUDA_VISIBLE_DEVICES` by which a user or Slurm hides the GPUs on purpose."""


def count_gpus() -> int:
    """Return the number of GPUs that this process can use, without initializing CUDA.

    Raises the error of `start_cuda` if there are none although this process was given some: a node
    with a broken driver must not train on its CPU unnoticed.
    """
    gpus = torch.cuda.device_count()
    sign = "" if gpus else sign_of_gpu(os.environ, Path("/dev"))
    if sign:
        reason = "CUDA finds no GPU"
        try:
            torch.zeros(1, device="cuda")
        except (RuntimeError, AssertionError) as error:
            reason = first_line(error)
        raise _cannot_start(
            torch.device("cuda", 0),
            f"{reason} ({sign}; set CUDA_VISIBLE_DEVICES= to train on the CPU)",
        )
    return gpus


def sign_of_gpu(environ: Mapping[str, str], devices: Path) -> str:
    """Return the sign that this process was given a GPU, or an empty string.

    A driver in /proc or `NVIDIA_VISIBLE_DEVICES=all` is no such sign: a node's driver is visible in
    all of its containers, and images set the variable themselves.

    Args:
        environ: The environment variables.
        devices: The folder of the device nodes.
    """
    if environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in _HIDDEN:
        return ""
    given = environ.get("NVIDIA_VISIBLE_DEVICES", "")
    if given.startswith(("GPU-", "MIG-")):  # as Kubernetes' device plugin sets it
        return "NVIDIA_VISIBLE_DEVICES names a GPU"
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if environ.get(name):
            return f"{name} names a GPU"
    for path in sorted(devices.glob("nvidia[0-9]*")):
        # Slurm leaves the device files of other jobs' GPUs in place, but the cgroup forbids opening
        # them.
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError:
            continue
        return f"{path} can be opened"
    return ""


def start_cuda(device: torch.device) -> None:
    """Start CUDA on the device of this rank.

    The driver's device count includes GPUs that CUDA cannot use. Raises `ConfigurationError` if the
    driver is missing or too old for this build, and `InfrastructureError` for a GPU that does not
    work.
    """
    try:
        torch.cuda.set_device(device)
        # `set_device` alone may succeed on a GPU that cannot be used.
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _cannot_start(device, first_line(error)) from None
    _name_of(device)  # cached while the GPU still responds
    # By default, torch uses TF32 for fp32 convolutions but not for matrix products.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def gpu_error(error: Exception) -> WorkerError | None:
    """Return the error to raise for a failure of the GPU itself, or None for any other error."""
    text = str(error)
    if _OWN_BUG in text or not any(words in text for words in _BROKEN):
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    return InfrastructureError(
        f"{_name_of(device)} failed: {first_line(error)}; if it fails again, take the "
        "node out of service (dmesg shows the Xid)"
    )


def _cannot_start(device: torch.device, reason: str) -> WorkerError:
    where = f"GPU {device.index} of {socket.gethostname()}"
    if any(words in reason for words in _WRONG_DRIVER):
        return ConfigurationError(
            f"{where}: CUDA cannot start: {reason}; update the node's driver, or use an "
            f"image built for a CUDA version it supports (this one is for {torch.version.cuda})"
        )
    hint = "is nvidia-fabricmanager running?" if _FABRIC in reason else "dmesg may say why"
    return InfrastructureError(f"{where}: CUDA cannot start: {reason}; {hint}")


@functools.cache
def _name_of(device: torch.device) -> str:
    """Describe a device by index, UUID and host, so that an operator can find it."""
    try:
        uuid = f" (GPU-{torch.cuda.get_device_properties(device).uuid})"
    except (RuntimeError, AssertionError, AttributeError):
        uuid = ""
    return f"GPU {device.index}{uuid} of {socket.gethostname()}"
