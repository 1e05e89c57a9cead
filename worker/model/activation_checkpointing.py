"""Activation checkpointing: blocks keep only their inputs, and recompute the rest.

Chen et al., "Training deep nets with sublinear memory cost", 2016
(https://arxiv.org/abs/1604.06174).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worker.model.batch_norm import running_statistics
from worker.model.skeleton import TRUNKS

_STACKS = (nn.Sequential, nn.ModuleList)


def checkpoint_activations(model: nn.Module) -> None:
    """Make the residual (or similar) blocks of a torchvision model recompute their activations.

    Applies in training only; weights, gradients and BatchNorm statistics are unaffected.
    """
    for block in _blocks(model):
        # Replacing `forward` on the instance, rather than wrapping the block in a module, leaves
        # parameter names as they are.
        block.forward = functools.partial(_recomputed, block, block.forward)


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[nn.Module]:
    """Yield the smallest repeated modules of a trunk.

    Leaf layers are skipped, as keeping their activations is cheaper than recomputing them.
    """
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if not _has_parts(child):
            continue
        # MaxViT's stages and layers keep their parts in `layers`.
        parts = child if isinstance(child, _STACKS) else getattr(child, "layers", ())
        if path in TRUNKS or any(map(_has_parts, parts)):
            yield from _blocks(child, f"{path}.")
        else:
            yield child


def _has_parts(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _recomputed(block: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    contexts = functools.partial(_contexts, block)
    output: Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
    return output


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Return the contexts of the forward pass and of its recomputation in the backward pass."""
    return contextlib.nullcontext(), _same_statistics(block)


@contextlib.contextmanager
def _same_statistics(block: nn.Module) -> Iterator[None]:
    """Undo the effect of a second forward pass on BatchNorm's running statistics."""
    live = running_statistics(block)
    kept = [buffer.clone() for buffer in live]
    # torch ends the recomputation early, with an exception, once it has all tensors that the
    # backward pass needs; the statistics must be restored then, too.
    try:
        yield
    finally:
        # One call per dtype, as lists of mixed dtypes would be copied tensor by tensor.
        for dtype in dict.fromkeys(buffer.dtype for buffer in live):
            ours, theirs = (
                [buffer for buffer in buffers if buffer.dtype == dtype] for buffers in (live, kept)
            )
            torch._foreach_copy_(ours, theirs)
