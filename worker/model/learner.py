"""The state that training changes: weights, their moving average, optimizer and loss scale."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.amp import GradScaler

from worker.manifest import Manifest
from worker.model.moving_average import MovingAverage
from worker.model.optimizer import build_optimizer
from worker.model.pull import Pull
from worker.model.rate_groups import RateGroup


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model and the training state that is checkpointed with it."""

    model: nn.Module
    """The model, on its device."""
    groups: tuple[RateGroup, ...]
    """Its rate groups."""
    optimizer: torch.optim.Optimizer
    """The optimizer."""
    scaler: GradScaler
    """Loss scaler for fp16; does nothing in other precisions."""
    precision: torch.dtype | None
    """Dtype of the forward and backward passes; None for fp32."""
    pull: Pull
    """The pull towards the weights that training starts from."""
    average: MovingAverage | None = None
    """Moving average of weights and BatchNorm statistics."""

    @property
    def result(self) -> nn.Module:
        """The model that is evaluated and saved: the average, if there is one."""
        return self.average.module if self.average else self.model


def build_learner(
    model: nn.Module, groups: tuple[RateGroup, ...], manifest: Manifest, device: torch.device
) -> Learner:
    """Put a model on its device and build its optimizer, average and loss scaler.

    Args:
        model: The model.
        groups: Its rate groups.
        manifest: The manifest.
        device: The device.

    Returns:
        The model with its optimizer, moving average, precision and loss scaler.
    """
    # Convolutions in half precision are fastest in this layout, NHWC.
    model = model.to(device).to(memory_format=torch.channels_last)
    if manifest.train.sync_batch_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    precision = precision_on(device, manifest.train.precision)
    decay = manifest.train.ema
    optimizer = build_optimizer(model, groups, manifest.optimizer)
    return Learner(
        model=model,
        groups=groups,
        optimizer=optimizer,
        pull=Pull(optimizer, decoupled=manifest.optimizer.name == "adamw"),
        scaler=GradScaler(device.type, enabled=precision is torch.float16),
        precision=precision,
        average=None if decay is None else MovingAverage(model, decay),
    )


def precision_on(device: torch.device, setting: str) -> torch.dtype | None:
    """Return the dtype that `train.precision` selects on this device; None for fp32."""
    if setting == "auto" and device.type == "cuda":
        # Older GPUs emulate bf16, which is slower than fp32, but have fast fp16.
        real = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if real else torch.float16
    if setting == "auto":
        return None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[setting]
