"""The model as all ranks train it together."""

import contextlib
from inspect import signature
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from worker.ranks.rank import Rank

# torch has renamed it.
_NEW = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_NO_SYNC: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}


def in_parallel(model: nn.Module, rank: Rank) -> nn.Module:
    """Wrap the model so that gradients are averaged over all ranks.

    To be called by all ranks together. A rank that is alone gets the model as it is: the wrapper
    would only copy every gradient to a bucket and back.
    """
    if rank.world_size == 1:
        return model
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if on_gpu else None,
        gradient_as_bucket_view=True,
        # The statistics of rank 0 are those that count, and only when saved or evaluated.
        **_NO_SYNC,
        # Else it lays its buckets out anew after the first step, and gloo adds up in another
        # order from then on: a resumed run would differ in the last bit from three ranks up.
        find_unused_parameters=not on_gpu and rank.world_size > 2,
    )


def without_exchange(parallel: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the context in which gradients add up on this rank alone."""
    if isinstance(parallel, DistributedDataParallel):
        return parallel.no_sync()
    return contextlib.nullcontext()
