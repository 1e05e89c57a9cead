"""GPUs that cannot start are named."""

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
