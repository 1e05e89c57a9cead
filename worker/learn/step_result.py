"""Results of a training step, and their transfer from the device to the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.ranks.device_transfer import Readout


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The results of a step."""

    sums: Tensor
    """This rank's sum of losses, correct predictions and image count, float64 [3], on the CPU."""
    finite: bool
    """Whether the gradient was finite on all ranks; if not, no rank updated its weights."""
    norms: Mapping[str, float]
    """Norms of the gradient before clipping, by group."""
    seconds: Mapping[str, float]
    """Host time by phase; on a GPU, `forward_backward` includes the wait for the results."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The scalar results of a step, as read back from the device."""

    loss: float
    """This rank's sum of losses."""
    right: float
    """This rank's correct predictions."""
    count: float
    """Number of this rank's images."""
    norm: float
    """Norm of the gradient of all parameters, reduced over all ranks."""
    norms: Sequence[float]
    """Gradient norms by group, reduced over all ranks."""
    scale: float
    """Factor by which the loss was scaled for fp16; 1 in any other precision."""


class Pending:
    """A step whose results are still on the device or in transfer.

    Args:
        sums: Sum of losses, correct predictions and image count of this rank, float64 [3].
        norm: Norm of the gradient of all parameters, [].
        norms: Gradient norm by group name, [] each.
        scale: The loss scale, [], or None in precisions that need none.
    """

    def __init__(
        self, sums: Tensor, norm: Tensor, norms: Mapping[str, Tensor], scale: Tensor | None
    ) -> None:
        self.norm = norm
        self._names = list(norms)
        numbers = [sums, norm, *norms.values(), *([] if scale is None else [scale])]
        # Copied before the scale is updated in place.
        self._readout = Readout(torch.cat([part.double().view(-1) for part in numbers]))
        self._seconds = dict.fromkeys(("host_to_device", "forward_backward", "optimizer"), 0.0)

    def spend(self, phase: str, seconds: float) -> None:
        """Add seconds to the time spent in a phase."""
        self._seconds[phase] += seconds

    def read(self) -> Numbers:
        """Wait for the results and return them."""
        # In the order in which `__init__` concatenated them.
        loss, right, count, norm, *rest = self._readout.read()
        groups = len(self._names)
        scale = rest[groups] if len(rest) > groups else 1.0
        return Numbers(
            loss=loss, right=right, count=count, norm=norm, norms=rest[:groups], scale=scale
        )

    def outcome(self, numbers: Numbers, *, finite: bool) -> StepResult:
        """Return the step's result, with zero sums if the step or any sum is not finite."""
        sums = torch.tensor([numbers.loss, numbers.right, numbers.count], dtype=torch.float64)
        counts = finite and bool(sums.isfinite().all())
        return StepResult(
            sums=sums if counts else torch.zeros_like(sums),
            finite=finite,
            norms=dict(zip(self._names, numbers.norms, strict=True)),
            seconds=self._seconds,
        )
