"""The environment of an attempt, for its record and metrics."""

import contextlib
import os
import platform
from typing import Any

import pynvml
import torch
import torchvision

import worker
from worker.environment import VARIABLES, Settings
from worker.metrics.registry import Metrics
from worker.numbers import ceil_div
from worker.ranks.cpu_cores import cores_of_node
from worker.ranks.rank import Rank

_SCHEDULERS = {
    "SLURM_JOB_ID": "slurm",
    "KUBERNETES_SERVICE_HOST": "kubernetes",
    "TORCHELASTIC_RUN_ID": "torchrun",
}


def environment_facts(rank: Rank, precision: torch.dtype | None) -> dict[str, Any]:
    """Return versions, devices, topology and numeric settings, as JSON data.

    Apart from the revision, only the worker's numeric environment variables are copied.
    """
    on_gpu = torch.cuda.is_available()
    return {
        "worker": worker.__version__,
        "revision": Settings.from_env().revision or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "platform": platform.platform(),
        "scheduler": next((s for name, s in _SCHEDULERS.items() if name in os.environ), "none"),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        **_device_facts(on_gpu=on_gpu),
        "backend": "nccl" if on_gpu else "gloo",
        "precision": str(precision or torch.float32).removeprefix("torch."),
        "world_size": rank.world_size,
        "nodes": ceil_div(rank.world_size, rank.local_world_size),
        "ranks_per_node": rank.local_world_size,
        "cores_per_node": cores_of_node(),
        "settings": {
            name: os.environ[name]
            for name, v in VARIABLES.items()
            if v.is_number and name in os.environ
        },
    }


def _device_facts(*, on_gpu: bool) -> dict[str, Any]:
    """Return facts about this rank's device; its UUID lets an operator find a broken GPU."""
    if not on_gpu:
        return {"device_bytes": None, "device_uuid": None, "driver": None}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = None
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
    return {
        "device_bytes": properties.total_memory,
        "device_uuid": f"GPU-{properties.uuid}",
        "driver": driver,
    }


def show_environment(facts: dict[str, Any], metrics: Metrics) -> None:
    """Export the facts as labels of metrics with the constant value 1."""
    build = ("worker", "revision", "python", "torch", "torchvision")
    metrics.build(*(str(facts[name]) for name in build)).set(1)
    place = ("scheduler", "device", "backend", "precision", "world_size", "nodes")
    metrics.environment(*(str(facts[name]) for name in place)).set(1)
