"""An exponential moving average of a model's weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from worker.model.batch_norm import running_statistics


class MovingAverage(AveragedModel):
    """Moving average of weights and BatchNorm statistics; the first update copies the model.

    torch's own update waits for the device and averages BatchNorm's integer counters one by one,
    in hundreds of kernels; here, counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._decay = decay
        self._averaged = [*self.module.parameters(), *running_statistics(self.module)]

    def update(self, parameters: Sequence[Tensor], statistics: Sequence[Tensor]) -> None:
        """Move the average toward a model, given its parameters and `running_statistics`."""
        pairs = list(zip(self._averaged, [*parameters, *statistics], strict=True))
        first = self.n_averaged == 0  # on the CPU, so reading it does not synchronize
        copied = [pair for pair in pairs if first or not pair[0].is_floating_point()]
        moved = [] if first else [pair for pair in pairs if pair[0].is_floating_point()]
        with torch.no_grad():
            if moved:
                ours, theirs = map(list, zip(*moved, strict=True))
                # average += (1 - decay) * (model - average)
                torch._foreach_lerp_(ours, theirs, 1 - self._decay)
            for dtype in dict.fromkeys(ours.dtype for ours, _ in copied):
                same = [pair for pair in copied if pair[0].dtype == dtype]
                ours, theirs = map(list, zip(*same, strict=True))
                torch._foreach_copy_(ours, theirs)
        self.n_averaged += 1
