"""BatchNorm running statistics, which a forward pass updates even if its step is skipped."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return flat views of the buffers of all BatchNorm layers, sorted by dtype."""
    modules = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer.view(-1) for module in modules for buffer in module.buffers(recurse=False)]
    return sorted(buffers, key=lambda buffer: str(buffer.dtype))


class RunningStatistics:
    """The running statistics of a model, and a copy of them as of the last applied step.

    Everything is decided on the device: if the host waited to learn whether a step is usable, the
    device would be idle meanwhile. Tensors of one dtype are copied together, in three kernels per
    step.
    """

    def __init__(self, model: nn.Module) -> None:
        live = running_statistics(model)
        self.sound: list[Tensor] = []
        """Copies as of the last applied step, in the order of `running_statistics`."""
        self._by_dtype: list[tuple[list[Tensor], Tensor, list[Tensor]]] = []
        for dtype in dict.fromkeys(buffer.dtype for buffer in live):
            same = [buffer for buffer in live if buffer.dtype == dtype]
            flat = torch.cat(same)
            # These are views of `flat`: one write to `flat` updates all of them.
            parts = list(flat.split([len(buffer) for buffer in same]))
            self._by_dtype.append((same, flat, parts))
            self.sound += parts

    def settle(self, usable: Tensor) -> None:
        """Save the statistics if the step is `usable`, else roll them back.

        Args:
            usable: Whether the step is applied, bool [], on the device.
        """
        for live, flat, sound in self._by_dtype:
            # `where` selects elements, so NaN in the live values does not spread, as it would if
            # they were multiplied by 0.
            torch.where(usable, torch.cat(live), flat, out=flat)
            torch._foreach_copy_(live, sound)

    def share(self) -> None:
        """Replace all ranks' statistics with rank 0's saved ones; all ranks must call this."""
        for live, flat, sound in self._by_dtype:
            dist.broadcast(flat, src=0)
            torch._foreach_copy_(live, sound)

    def restore(self) -> None:
        """Restore the statistics as of the last applied step."""
        for live, _, sound in self._by_dtype:
            torch._foreach_copy_(live, sound)


class BatchStatistics:
    """Guard that keeps BatchNorm layers from computing batch statistics from too few values.

    The layers use the running statistics instead, without updating them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._single: list[nn.Module] | None = None

    @contextlib.contextmanager
    def withheld(self, images: Tensor, *, suffice: bool) -> Iterator[None]:
        """Make layers with too few values use running statistics, in the backward pass too.

        Args:
            images: The images that will be passed to the model, [N, 3, S, S].
            suffice: Whether there are enough images for batch statistics at all.
        """
        found: Sequence[nn.Module] = ()
        if not suffice:
            found = [module for module in self._model.modules() if isinstance(module, _BatchNorm)]
        elif len(images) == 1:
            found = self._with_single_values(images)
        changed = [module for module in found if module.training]
        # Only once the context ends may they change back: activation checkpointing repeats the
        # forward pass within the backward pass, and must take the same branch.
        for module in changed:
            module.training = False
        try:
            yield
        finally:
            for module in changed:
                module.training = True

    def _with_single_values(self, image: Tensor) -> list[nn.Module]:
        """Find, by a trial run, the layers that see one value per channel for a single image."""
        # Found once, as all images of a job have the same size.
        if self._single is None:
            single: list[nn.Module] = []

            def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                # As many values as channels: torch refuses to compute a variance from a single
                # value per channel.
                if math.prod(inputs[0].shape) == inputs[0].shape[1]:
                    single.append(module)

            modules = [m for m in self._model.modules() if _has_own_statistics(m)]
            hooks = [module.register_forward_pre_hook(look) for module in modules]
            # Everything else stays in training mode, as auxiliary heads run only in that mode.
            norms = [module for module in modules if module.training]
            for module in norms:
                module.training = False
            # The fork keeps dropout in the trial run from advancing the random number generators
            # that training uses.
            with torch.no_grad(), torch.random.fork_rng(_devices_of(image)):
                self._model(image)
            for module in norms:
                module.training = True
            for hook in hooks:
                hook.remove()
            self._single = single
        return self._single


def _has_own_statistics(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm that computes statistics on this rank alone."""
    together = dist.is_initialized() and dist.get_world_size() > 1
    return isinstance(module, _BatchNorm) and not (
        together and isinstance(module, nn.SyncBatchNorm)
    )


def _devices_of(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.is_cuda else []
