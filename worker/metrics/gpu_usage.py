"""Utilization, memory and energy of a rank's GPU."""

import contextlib
import math

import pynvml
import torch

from worker.metrics.registry import Metrics


class EnergyMeter:
    """The energy of this process's GPU since the meter was made, where NVML counts it (Volta on).

    https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
    """

    def __init__(self) -> None:
        self._began = self._millijoules()

    def joules(self) -> float:
        """Return the energy; NaN if it is not counted, or if there is no GPU."""
        return (self._millijoules() - self._began) / 1000

    def _millijoules(self) -> float:
        if not torch.cuda.is_initialized():
            return math.nan
        try:
            pynvml.nvmlInit()
            # By UUID, as NVML numbers devices regardless of CUDA_VISIBLE_DEVICES.
            name = f"GPU-{torch.cuda.get_device_properties().uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except (pynvml.NVMLError, RuntimeError, AttributeError):
            return math.nan


def show_gpu(metrics: Metrics) -> None:
    """Record memory and utilization of this process's GPU in the metrics, if it has one."""
    if not torch.cuda.is_initialized():
        return
    metrics.gpu_memory().set(torch.cuda.max_memory_allocated())
    metrics.gpu_memory_total().set(torch.cuda.get_device_properties().total_memory)
    with contextlib.suppress(Exception):  # every vendor's library raises its own errors
        metrics.gpu_utilization().set(torch.cuda.utilization() / 100)
