"""BatchNorm's running statistics, which a forward pass changes whether or not its step counts."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
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

    def share(self) -> None:
        """Give all ranks those of rank 0, which are the ones that are saved; called by all."""
        for live, flat, sound in self._by_dtype:
            dist.broadcast(flat, src=0)
            torch._foreach_copy_(live, sound)

    def restore(self) -> None:
        """Put back those after the last step that counted."""
        for live, _, sound in self._by_dtype:
            torch._foreach_copy_(live, sound)


class BatchStatistics:
    """Keeps BatchNorm layers from taking statistics from a pass that has too few values for them.

    They use the running statistics instead, and leave them as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._single: list[nn.Module] | None = None

    @contextlib.contextmanager
    def withheld(self, images: Tensor, *, suffice: bool) -> Iterator[None]:
        """Let the layers that may not take statistics use the running ones, backward included.

        Args:
            images: What will be passed to the model, [N, 3, S, S].
            suffice: Whether there are images enough for statistics at all.
        """
        found: Sequence[nn.Module] = ()
        if not suffice:
            found = [module for module in self._model.modules() if isinstance(module, _BatchNorm)]
        elif len(images) == 1:
            found = self._with_single_values(images)
        changed = [module for module in found if module.training]
        for module in changed:
            module.training = False
        try:
            yield
        finally:
            for module in changed:
                module.training = True

    def _with_single_values(self, image: Tensor) -> list[nn.Module]:
        """Return the layers that see one value per channel of one image, found by a trial."""
        if self._single is None:
            single: list[nn.Module] = []

            def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                if math.prod(inputs[0].shape) == inputs[0].shape[1]:
                    single.append(module)

            modules = [m for m in self._model.modules() if _has_own_statistics(m)]
            hooks = [module.register_forward_pre_hook(look) for module in modules]
            # All else trains, as an auxiliary head runs in training only.
            norms = [module for module in modules if module.training]
            for module in norms:
                module.training = False
            with torch.no_grad(), torch.random.fork_rng(_devices_of(image)):
                self._model(image)
            for module in norms:
                module.training = True
            for hook in hooks:
                hook.remove()
            self._single = single
        return self._single


def _has_own_statistics(module: nn.Module) -> bool:
    """Return whether it is a BatchNorm with statistics of this rank alone."""
    together = dist.is_initialized() and dist.get_world_size() > 1
    return isinstance(module, _BatchNorm) and not (
        together and isinstance(module, nn.SyncBatchNorm)
    )


def _devices_of(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.is_cuda else []
