"""A pull towards the weights that training starts from: L2-SP (Li, Grandvalet and Davoine, 2018).

It takes the place of weight decay, which pulls towards zero and so away from what the pretrained
weights know.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class _Pulled:
    group: dict[str, Any]
    parameters: list[nn.Parameter]
    starts: list[Tensor]
    decay: float


class Pull:
    """The pull on the parameter groups of an optimizer that ask for it.

    Create it while the model has the weights to pull towards.

    Args:
        optimizer: The optimizer; its groups say how strongly they are pulled.
        decoupled: Whether weight decay is decoupled from the gradient, as in AdamW.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, decoupled: bool) -> None:
        self._decoupled = decoupled
        self._pulled = [
            _Pulled(
                group=group,
                parameters=group["params"],
                starts=[parameter.detach().clone() for parameter in group["params"]],
                decay=group["pull"],
            )
            for group in optimizer.param_groups
            if group["pull"]
        ]

    def __bool__(self) -> bool:
        return bool(self._pulled)

    def share(self) -> None:
        """Replace the start on all ranks by that of rank 0; all ranks call this together."""
        if dist.get_world_size() > 1:
            for pulled in self._pulled:
                for start in pulled.starts:
                    dist.broadcast(start, src=0)

    def apply(self, usable: Tensor) -> None:
        """Add the pull to a step that is about to be made.

        Args:
            usable: Whether the step will be made, bool [], on the device.
        """
        for pulled in self._pulled:
            pairs = [
                (parameter, start)
                for parameter, start in zip(pulled.parameters, pulled.starts, strict=True)
                if parameter.grad is not None
            ]
            if not pairs:
                continue
            with torch.no_grad():
                away = torch._foreach_sub([p for p, _ in pairs], [s for _, s in pairs])
                if self._decoupled:
                    # 0 for a step that is not made, without the host waiting to learn that.
                    share = usable.float() * (pulled.decay * pulled.group["lr"])
                    torch._foreach_mul_(away, share)
                    torch._foreach_sub_([p for p, _ in pairs], away)
                else:
                    gradients = [p.grad for p, _ in pairs if p.grad is not None]
                    torch._foreach_add_(gradients, away, alpha=pulled.decay)
