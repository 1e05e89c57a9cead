"""Detection of lost ranks while this rank waits for its device.

A collective between GPUs, and the host with it, waits for a lost rank until the collective times
out after 20 minutes. gloo connections break when a process dies, so each rank keeps a receive from
its neighbor pending in a thread, on a separate process group. A rank whose connection breaks
notifies the next. TCP keepalive breaks connections to a machine that has lost power or network.
"""

import contextlib
import datetime
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from worker.ranks.keepalive import keep_alive

_FOREVER = datetime.timedelta(days=365)
_FAREWELL = -1  # in place of the number of a lost rank
_GRACE_SECONDS = 3.0
_CLOSE_SECONDS = 5.0


class Liveness:
    """Monitor that calls `lost` with the number of a rank that has ended without a farewell.

    It waits a moment before the call: a rank that is not stuck notices the loss itself, in its next
    collective, and exits in an orderly way. All ranks must create and close it together.

    Args:
        lost: Called in this object's thread.
        patience: Seconds that the ranks wait for each other in the constructor.
    """

    def __init__(self, lost: Callable[[int], None], patience: float) -> None:
        self._lost = lost
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        if dist.get_world_size() == 1:
            return
        # Each rank receives from the left and sends to the right, so the messages go around a ring.
        self._left, self._right = ((dist.get_rank() + x) % dist.get_world_size() for x in (-1, 1))
        # Without this, a rank that is already gone would be waited for until the new group times
        # out.
        dist.all_reduce(torch.zeros(1))
        # The group's timeout cannot be changed later, and the pending receive lasts as long as the
        # job. Typed as Any because new_group also allows for ranks outside the group; here,
        # there are none.
        self._group: Any = dist.new_group(backend="gloo", timeout=_FOREVER)
        self._greet(datetime.timedelta(seconds=patience))
        keep_alive()  # connections to the neighbors exist only now
        self._thread = threading.Thread(target=self._listen, name="liveness", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send a farewell, and wait for the neighbor's."""
        self.abandon()
        if self._thread:
            self._tell(_FAREWELL)
            self._thread.join(_CLOSE_SECONDS)

    def abandon(self) -> None:
        """Ignore losses from now on, as this rank is about to exit on its own."""
        self._ending.set()

    def _greet(self, patience: datetime.timedelta) -> None:
        """Exchange messages with both neighbors: only an established connection can break."""
        # Both at once: if all ranks first waited for their send, none might get to its receive.
        words = torch.zeros(2, 1, dtype=torch.int64)
        sent = dist.isend(words[0], self._right, group=self._group)
        received = dist.irecv(words[1], self._left, group=self._group)
        for work in (sent, received):
            if work:
                work.wait(patience)

    def _listen(self) -> None:
        # Only the right neighbor of a lost rank sees its receive fail. It sends the lost rank's
        # number on, as does every rank that receives it, up to the lost rank's left neighbor.
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
        # The neighbor may be gone, too, or this rank may have left the group already.
        with contextlib.suppress(RuntimeError, ValueError):
            dist.send(torch.tensor([message]), self._right, group=self._group)
