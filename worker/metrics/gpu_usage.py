"""Utilization and memory of a rank's GPU."""

import contextlib

import torch

from worker.metrics.registry import Metrics


def show_gpu(metrics: Metrics) -> None:
    """Record memory and utilization of this process's GPU in the metrics, if it has one."""
    if not torch.cuda.is_initialized():
        return
    metrics.gpu_memory().set(torch.cuda.max_memory_allocated())
    metrics.gpu_memory_total().set(torch.cuda.get_device_properties().total_memory)
    with contextlib.suppress(Exception):  # every vendor's library raises its own errors
        metrics.gpu_utilization().set(torch.cuda.utilization() / 100)
