"""Starting CUDA, and telling a broken GPU from a broken program."""

import functools
import socket

import torch

from worker.errors import ConfigurationError, InfrastructureError, WorkerError, first_line

_FABRIC = "802"  # cudaErrorSystemNotReady
_WRONG_DRIVER = (
    "driver on your system is too old",
    "no NVIDIA driver",
    "unsupported display driver",
)
_BROKEN = ("CUDA error", "cuDNN error", "CUBLAS_STATUS_EXECUTION_FAILED")
_OWN_BUG = "device-side assert"


def start_cuda(device: torch.device) -> None:
    """Start CUDA on the device of this rank.

    The driver counts GPUs that CUDA cannot use. Raises `ConfigurationError` if the driver is
    missing or too old for this build, and `InfrastructureError` for a GPU that does not work.
    """
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _cannot_start(device, first_line(error)) from None
    _name_of(device)  # while it can be asked
    # By torch's defaults fp32 is TF32 in convolutions and not in matrix products.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def gpu_error(error: Exception) -> WorkerError | None:
    """Return the error that a failure of the GPU itself means, or None for any other error."""
    text = str(error)
    if _OWN_BUG in text or not any(words in text for words in _BROKEN):
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    return InfrastructureError(
        f"{_name_of(device)} failed: {first_line(error)}; if it happens there again, take the "
        "node out of service (dmesg shows the Xid)"
    )


def _cannot_start(device: torch.device, reason: str) -> WorkerError:
    where = f"GPU {device.index} of {socket.gethostname()}"
    if any(words in reason for words in _WRONG_DRIVER):
        return ConfigurationError(
            f"{where}: CUDA cannot start: {reason}; update the node's driver, or use an image "
            f"built for a CUDA that it supports (this one is for {torch.version.cuda})"
        )
    hint = "is nvidia-fabricmanager running?" if _FABRIC in reason else "dmesg may say why"
    return InfrastructureError(f"{where}: CUDA cannot start: {reason}; {hint}")


@functools.cache
def _name_of(device: torch.device) -> str:
    """The device for whoever has to find it: index, UUID and host."""
    try:
        uuid = f" (GPU-{torch.cuda.get_device_properties(device).uuid})"
    except (RuntimeError, AssertionError, AttributeError):
        uuid = ""
    return f"GPU {device.index}{uuid} of {socket.gethostname()}"
