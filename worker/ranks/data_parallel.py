"""Data-parallel training of a model on all ranks."""

import contextlib
from inspect import signature
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from worker.ranks.rank import Rank

# torch has renamed this argument.
_NEW = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_NO_SYNC: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}


def in_parallel(model: nn.Module, rank: Rank) -> nn.Module:
    """Wrap the model so that gradients are averaged over all ranks.

    All ranks must call this together. A single rank gets the model unwrapped: the wrapper would
    only copy every gradient to a bucket and back.
    """
    if rank.world_size == 1:
        return model
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if on_gpu else None,
        gradient_as_bucket_view=True,  # gradients live in the buckets, with no second copy
        # Only rank 0's BatchNorm statistics are used: for saving, evaluation and short batches.
        **_NO_SYNC,
        # Otherwise, DDP rebuilds its buckets after the first step, and gloo sums in a different
        # order from then on: with three or more ranks, a resumed run would differ in the last bit.
        find_unused_parameters=not on_gpu and rank.world_size > 2,
    )


def without_exchange(parallel: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return a context in which gradients accumulate on this rank without being exchanged."""
    if isinstance(parallel, DistributedDataParallel):
        return parallel.no_sync()
    return contextlib.nullcontext()
