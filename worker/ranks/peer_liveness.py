"""Notices that another rank is gone while this one waits for its device.

A collective between GPUs waits for a lost rank until its time-out, 20 minutes, and the host with
it. gloo's connections break when a process dies, so each rank has a receive from its neighbor
pending in a thread, on a process group of its own. Who sees one break tells the next.
"""

import contextlib
import datetime
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

_FOREVER = datetime.timedelta(days=365)
_FAREWELL = -1
_GRACE_SECONDS = 3.0
_CLOSE_SECONDS = 5.0


class Liveness:
    """Calls `lost` with the number of a rank that has ended without a farewell.

    It waits a moment before that: a rank that is not stuck sees the loss by itself, in its next
    collective, and ends as it should. To be made, and closed, by all ranks together.

    Args:
        lost: Called in a thread of this object.
        patience: For how long, in seconds, the ranks wait for each other here.
    """

    def __init__(self, lost: Callable[[int], None], patience: float) -> None:
        self._lost = lost
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        if dist.get_world_size() == 1:
            return
        self._left, self._right = ((dist.get_rank() + x) % dist.get_world_size() for x in (-1, 1))
        # Its type allows for ranks outside the group, and there are none.
        # One that is gone already would be waited for for as long as the group has patience.
        dist.all_reduce(torch.zeros(1))
        # Its timeout cannot be changed later, and the pending receive lasts as long as the job.
        self._group: Any = dist.new_group(backend="gloo", timeout=_FOREVER)
        self._greet(datetime.timedelta(seconds=patience))
        self._thread = threading.Thread(target=self._listen, name="liveness", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say farewell, and wait for that of the neighbor."""
        self.abandon()
        if self._thread:
            self._tell(_FAREWELL)
            self._thread.join(_CLOSE_SECONDS)

    def abandon(self) -> None:
        """Take no more notice, as this rank is about to end by itself."""
        self._ending.set()

    def _greet(self, patience: datetime.timedelta) -> None:
        """Exchange a word with both neighbors: only a connection that was made can break."""
        words = torch.zeros(2, 1, dtype=torch.int64)
        sent = dist.isend(words[0], self._right, group=self._group)
        received = dist.irecv(words[1], self._left, group=self._group)
        for work in (sent, received):
            if work:
                work.wait(patience)

    def _listen(self) -> None:
        message = torch.zeros(1, dtype=torch.int64)
        try:
            dist.recv(message, self._left, group=self._group)
            gone = int(message)
        except RuntimeError:
            gone = self._left
        if gone == _FAREWELL:
            return
        if gone != self._right:
            self._tell(gone)
        if not self._ending.wait(_GRACE_SECONDS):
            self._lost(gone)

    def _tell(self, message: int) -> None:
        # It is gone, too, or this rank has left the group already.
        with contextlib.suppress(RuntimeError, ValueError):
            dist.send(torch.tensor([message]), self._right, group=self._group)
