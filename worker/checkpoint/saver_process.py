"""Checkpoints written by a separate process, alongside the one that trains.

Digests, signatures and requests would take the interpreter lock from the thread that launches
kernels and, when training on CPUs, cores from the training.
"""

import functools
import gc
import threading
import time
import traceback
from multiprocessing.connection import Connection

import torch

from worker.checkpoint.commit import CommitName, Part, write_parts
from worker.checkpoint.host_copy import HostCopy
from worker.checkpoint.snapshot import Snapshot
from worker.errors import WorkerError
from worker.forks import Child
from worker.store import Store
from worker.store.traffic_counts import listen, replay


class Saver:
    """Handle to a forked saver process; create it before CUDA or any thread is started.

    Args:
        output: The output of the job.
        size: Size of the buffer for a training state, in bytes.
    """

    def __init__(self, output: Store, size: int) -> None:
        self.host = HostCopy(size)
        serve = functools.partial(_serve, output=output, host=self.host)
        self._child = Child("save", "the process that saves checkpoints", serve)

    def write(self, name: CommitName, snapshot: Snapshot) -> list[Part]:
        """Upload the parts of the checkpoint in `self.host`, and return their descriptions.

        Raises the errors of `Store`, and `InfrastructureError` if the process was killed.
        """
        self._child.send((name, snapshot))
        while True:
            message = self._child.receive()
            # Reports of single requests, which are tuples, precede the list of parts that ends the
            # save.
            if isinstance(message, list):
                return message
            replay([message])

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._child.hang_up()
        # A deadline that has already passed: an upload in progress is worthless without its commit.
        self._child.end(time.monotonic())


class _Teller:
    """Listener that reports each request to the parent immediately; thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def request(self, operation: str, seconds: float, size: int) -> None:
        """See `Listener`."""
        self._tell("request", operation, seconds, size)

    def retry(self, operation: str) -> None:
        """See `Listener`."""
        self._tell("retry", operation)

    def failure(self, operation: str) -> None:
        """See `Listener`."""
        self._tell("failure", operation)

    def _tell(self, method: str, *arguments: object) -> None:
        # The store reports from its upload threads too, and `Connection.send` is not thread-safe.
        with self._lock:
            self._connection.send((method, arguments))


def _serve(connection: Connection, output: Store, host: HostCopy) -> None:
    """Write snapshots until the parent closes its end of the connection."""
    torch.set_num_threads(1)
    gc.freeze()  # objects inherited by the fork stay shared with the parent
    listen(_Teller(connection))
    while True:
        try:
            name, snapshot = connection.recv()
            connection.send(_written(output, host, name, snapshot))
        except (EOFError, OSError):  # the rank has closed the connection
            return


def _written(
    output: Store, host: HostCopy, name: CommitName, snapshot: Snapshot
) -> list[Part] | Exception:
    """Write the parts of a checkpoint, and return them or the error that prevented it."""
    try:
        return write_parts(output, name, snapshot.parts(host))
    except WorkerError as error:
        return error
    except Exception:
        return RuntimeError(f"in the process that saves checkpoints: {traceback.format_exc()}")
