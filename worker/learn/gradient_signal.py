"""The share of a gradient that is signal: what its batches agree on, next to how they differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.ranks.process_group import total


@dataclass(frozen=True, kw_only=True)
class GradientSums:
    """Sums over K batches for one set of parameters."""

    mean_square: float
    """Squared norm of the mean gradient."""
    variance: float
    """Variance of the gradient of a batch, summed over the parameters."""
    norm: float
    """Mean norm of the gradient of a batch."""
    weight_norm: float
    """Norm of the parameters."""
    parameters: int
    """Their number."""
    batches: int
    """K."""

    @property
    def signal(self) -> float:
        """Share of a batch's squared gradient that is signal, from 0 to 1.

        The squared norm of the mean over K batches exceeds that of the true gradient by V/K on
        average. The share is that of the true gradient in E‖g‖², which is what the optimal rate of
        a block is proportional to (Schaul, Zhang and LeCun, "No more pesky learning rates", 2013).
        """
        signal = max(0.0, self.mean_square - self.variance / self.batches)
        whole = signal + self.variance
        return signal / whole if whole else 0.0

    @property
    def relative_norm(self) -> float:
        """Norm of a batch's gradient over that of the parameters (relative gradient norm)."""
        return self.norm / self.weight_norm if self.weight_norm else 0.0


class GradientSignal:
    """Sums of the gradients of batches; each rank adds the batches that it computed.

    Args:
        parameters: The parameters by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = dict(parameters)
        # In double precision, so that the order in which ranks are summed shows in no digit.
        self._sums = {
            name: torch.zeros(p.shape, dtype=torch.float64, device=p.device)
            for name, p in self._parameters.items()
        }
        self._squares: dict[str, list[float]] = {name: [] for name in self._parameters}

    def add(self) -> bool:
        """Add the gradients that the parameters hold now; those without one count as 0.

        Returns whether all of them are finite.
        """
        finite = True
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            square = 0.0
            if gradient is not None:
                self._sums[name] += gradient
                square = float(gradient.double().square().sum())
            self._squares[name].append(square)
            finite &= math.isfinite(square)
        return finite

    def sums(self, sets: Sequence[Sequence[str]], batches: int) -> list[GradientSums]:
        """Return the sums of sets of parameters over the batches of all ranks.

        All ranks call this together, once, after the last `add`.

        Args:
            sets: Names of the parameters in each set.
            batches: The number of batches of all ranks.
        """
        device = next(iter(self._sums.values())).device
        means = {}
        for name, mine in self._sums.items():
            torch.distributed.all_reduce(mine)
            means[name] = float((mine / batches).square().sum())
        found = []
        for names in sets:
            by_batch = [sum(each) for each in zip(*(self._squares[n] for n in names), strict=True)]
            squares, norms = total(
                float(sum(by_batch)), sum(square**0.5 for square in by_batch), device=device
            )
            mean_square = sum(means[name] for name in names)
            weights = [self._parameters[name].detach().double() for name in names]
            sums = GradientSums(
                mean_square=mean_square,
                # The unbiased estimate, from the mean of ‖g‖², less ‖ḡ‖².
                variance=max(0.0, squares / batches - mean_square) * batches / max(1, batches - 1),
                norm=norms / batches,
                weight_norm=sum(float(weight.square().sum()) for weight in weights) ** 0.5,
                parameters=sum(weight.numel() for weight in weights),
                batches=batches,
            )
            found.append(sums)
        return found
