"""BatchNorm's running statistics, which a forward pass changes whether or not its step counts."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Flat views of the buffers of all BatchNorm layers, those of one dtype together."""
    modules = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer.view(-1) for module in modules for buffer in module.buffers(recurse=False)]
    return sorted(buffers, key=lambda buffer: str(buffer.dtype))


class RunningStatistics:
    """The running statistics of a model, and a copy as of the last step that counted.

    All is decided on the device: a host that waited to learn whether a step is finite would leave
    the device idle meanwhile. Tensors of one dtype move together, in three kernels per step.
    """

    def __init__(self, model: nn.Module) -> None:
        live = running_statistics(model)
        self.sound: list[Tensor] = []
        """Copies as of the last step that counted, in the order of `running_statistics`."""
        self._by_dtype: list[tuple[list[Tensor], Tensor, list[Tensor]]] = []
        for dtype in dict.fromkeys(buffer.dtype for buffer in live):
            same = [buffer for buffer in live if buffer.dtype == dtype]
            flat = torch.cat(same)
            parts = list(flat.split([len(buffer) for buffer in same]))
            self._by_dtype.append((same, flat, parts))
            self.sound += parts

    def settle(self, usable: Tensor) -> None:
        """Keep the model's if its step is `usable` (bool [], on the device); else put them back."""
        for live, flat, sound in self._by_dtype:
            torch.where(usable, torch.cat(live), flat, out=flat)
            torch._foreach_copy_(live, sound)

    def restore(self) -> None:
        """Put back those after the last step that counted."""
        for live, _, sound in self._by_dtype:
            torch._foreach_copy_(live, sound)
