"""Waiting for work that rank 0 does alone, however long it takes.

A collective would time out after `WORKER_COLLECTIVE_SECONDS`, even while rank 0 makes progress, so
the others poll the rendezvous store instead. `Liveness` notices lost ranks.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

_POLL_SECONDS = 0.2


@contextmanager
def by_leader(name: str, beat: Callable[[], None]) -> Iterator[bool]:
    """Yield whether this rank leads; if not, wait until rank 0 has left the same context.

    All ranks enter it together. If rank 0 leaves it with an error, the others wait until
    `Liveness` or their parent ends them.

    Args:
        name: What rank 0 does, unique within the life of the process group.
        beat: Called while this rank waits, to show that it is alive.
    """
    store: Any = dist.distributed_c10d._get_default_store()
    key = f"done: {name}"
    leads = dist.get_rank() == 0
    yield leads
    if leads:
        store.set(key, "")
        return
    while not store.check([key]):
        beat()
        time.sleep(_POLL_SECONDS)
