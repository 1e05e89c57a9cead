"""A copy of tensors in host memory, made into the same buffers every time."""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

Key = Hashable


class HostCopy:
    """Buffers for a rank's training state; what it holds stays put until the next `take`.

    Page-locked where the tensors are on a GPU. The layout of each tensor is kept, as a copy that
    changes it takes several times as long.
    """

    def __init__(self) -> None:
        self._buffers: dict[Key, Tensor] = {}

    def take(self, tensors: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """Copy all of them; the only part of a checkpoint that training waits for."""
        self._buffers = {name: self._buffer(name, tensor) for name, tensor in tensors.items()}
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._buffers[name].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return self._buffers

    def _buffer(self, name: Key, tensor: Tensor) -> Tensor:
        known = self._buffers.get(name)
        if known is not None and known.shape == tensor.shape and known.dtype == tensor.dtype:
            return known
        pinned = tensor.is_cuda
        return torch.empty_like(tensor, device="cpu", pin_memory=pinned, requires_grad=False)
