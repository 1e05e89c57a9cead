"""A deadline for whole requests: a server that sends a byte now and then is as good as away.

A socket's own time-out begins anew with every byte. So whoever waits for a request registers it
here, and once it is late its connection is shut down, on which the read that hangs ends.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from botocore.awsrequest import AWSHTTPConnection, AWSHTTPSConnection

_LOOK_SECONDS = 0.25
_MIN_BYTES_PER_SECOND = 100_000  # what a line must move, beyond the deadline of a small request


class TooSlow(TimeoutError):
    """An answer that was not complete in time."""


class _Request:
    """A request under way in one thread."""

    def __init__(self, seconds: float) -> None:
        self.late_at = time.monotonic() + seconds
        self.sockets: list[socket.socket] = []
        self.is_late = False

    def shut_down(self) -> None:
        """Break it off."""
        self.is_late = True
        for each in self.sockets:
            with contextlib.suppress(OSError):
                # Not the method of a TLS socket, which would pull its state from under the reader.
                socket.socket.shutdown(each, socket.SHUT_RDWR)


class _Monitor:
    """Shuts down late requests of this process, from a thread that lives as long as there are any.

    No longer, as it might be in the way of a fork.
    """

    def __init__(self) -> None:
        self._requests: set[_Request] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, request: _Request) -> None:
        with self._lock:
            self._requests.add(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
                self._thread.start()

    def remove(self, request: _Request) -> None:
        with self._lock:
            self._requests.discard(request)

    def _watch(self) -> None:
        while True:
            with self._lock:
                if not self._requests:
                    self._thread = None
                    return
                now = time.monotonic()
                late = [each for each in self._requests if each.late_at < now]
            for request in late:
                request.shut_down()
            time.sleep(_LOOK_SECONDS)


_local = threading.local()
_monitor = _Monitor()


def _renew() -> None:
    """A fork has neither the thread, nor perhaps the lock as it should be."""
    global _monitor
    _monitor = _Monitor()


os.register_at_fork(after_in_child=_renew)


@contextlib.contextmanager
def limited(seconds: float, sent: int = 0) -> Iterator[None]:
    """Raise `TooSlow` if the request that is made inside by this thread takes longer.

    Args:
        seconds: How long it may take, besides what its bytes take.
        sent: Bytes that it sends.
    """
    request = _Request(seconds + sent / _MIN_BYTES_PER_SECOND)
    around = getattr(_local, "request", None)
    _local.request = request
    _monitor.add(request)
    try:
        yield
    except Exception as error:
        if request.is_late:
            raise TooSlow(f"no whole answer within {seconds:.0f} s") from error
        raise
    finally:
        _local.request = around
        _monitor.remove(request)


def allow(received: int) -> None:
    """Give this thread's request the time that so many bytes of an answer may take."""
    request = getattr(_local, "request", None)
    if request:
        request.late_at += received / _MIN_BYTES_PER_SECOND


def _note(each: socket.socket | None) -> None:
    request = getattr(_local, "request", None)
    if request and each is not None:
        request.sockets.append(each)


class _Watched:
    """A connection that tells which sockets it uses, from the first byte of a handshake on."""

    sock: socket.socket | None

    def _new_conn(self) -> socket.socket:
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        _note(made)
        return made

    def request(self, *arguments: Any, **named: Any) -> Any:
        _note(self.sock)
        result = super().request(*arguments, **named)  # type: ignore[misc]
        _note(self.sock)
        return result


class WatchedHTTPConnection(_Watched, AWSHTTPConnection):  # type: ignore[misc]
    """A connection without encryption."""


class WatchedHTTPSConnection(_Watched, AWSHTTPSConnection):  # type: ignore[misc]
    """A connection with TLS."""
