"""Deadlines for entire requests, so that a server that trickles bytes counts as down.

A socket's own timeout restarts with every byte. So every thread registers its request here, and
once the request is late, its connection is shut down, which ends the blocked read.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from botocore.awsrequest import AWSHTTPConnection, AWSHTTPSConnection

from worker.store.error_kinds import IdentityError

_POLL_SECONDS = 0.25
_MIN_BYTES_PER_SECOND = 100_000  # lowest acceptable rate, which deadlines allow for


class TooSlow(TimeoutError):
    """A response that was not complete by its deadline."""


class _Request:
    """A request in flight in one thread."""

    def __init__(self, seconds: float) -> None:
        self.late_at = time.monotonic() + seconds
        self.sockets: list[socket.socket] = []
        self.copies: list[socket.socket] = []
        self.is_late = False

    def shut_down(self) -> None:
        """Mark the request as late and shut down its sockets."""
        # Set before the shutdown, which wakes the thread that then looks at it.
        self.is_late = True
        for each in (*self.sockets, *self.copies):
            # Raised by the plain socket below a TLS one, which is detached once TLS takes over.
            with contextlib.suppress(OSError):
                # Not `SSLSocket.shutdown`, which would drop the TLS state while a reader uses it.
                socket.socket.shutdown(each, socket.SHUT_RDWR)


class _Monitor:
    """Monitor that shuts down late requests, from a thread that lives while any are in flight.

    A thread that outlived the requests might interfere with a fork.
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
                # Under the same lock as in `add`: a new request either keeps this thread alive or
                # finds it gone, and starts another.
                if not self._requests:
                    self._thread = None
                    return
                now = time.monotonic()
                late = [each for each in self._requests if each.late_at < now]
            # Repeated at each poll until the request ends, as it may have opened another connection
            # in the meantime. A request that has just ended may have left its connection to another
            # request, which then fails and is retried.
            for request in late:
                request.shut_down()
            time.sleep(_POLL_SECONDS)


_local = threading.local()
_monitor = _Monitor()


def _renew() -> None:
    """Replace the monitor in a forked child: its thread is gone, and its lock may be held."""
    global _monitor
    _monitor = _Monitor()


os.register_at_fork(after_in_child=_renew)


@contextlib.contextmanager
def limited(seconds: float, sent: int = 0) -> Iterator[None]:
    """Raise `TooSlow` if the request that this thread makes in the context takes too long.

    Args:
        seconds: How long it may take, in addition to the time allowed for its bytes.
        sent: The number of bytes that it sends.
    """
    request = _Request(seconds + sent / _MIN_BYTES_PER_SECOND)
    # Requests nest: the check of `put_if_absent` makes some, each with a deadline of its own.
    around = getattr(_local, "request", None)
    _local.request = request
    _monitor.add(request)
    try:
        yield
    except Exception as error:
        # Credentials are fetched from another server, whose failure has a message of its own.
        if request.is_late and not isinstance(error, IdentityError):
            raise TooSlow(f"no complete response within {seconds:.0f} s") from error
        raise
    finally:
        _local.request = around
        _monitor.remove(request)
        for copy in request.copies:
            copy.close()


def allow(received: int) -> None:
    """Extend the deadline of this thread's request by the time that `received` bytes may take."""
    request = getattr(_local, "request", None)
    if request:
        # No lock: only the thread that makes the request writes this.
        request.late_at += received / _MIN_BYTES_PER_SECOND


def _note(each: socket.socket | None) -> None:
    request = getattr(_local, "request", None)
    if request and each is not None:
        request.sockets.append(each)


class _Watched:
    """A connection that registers its sockets, from the first byte of the handshake on."""

    sock: socket.socket | None

    def _new_conn(self) -> socket.socket:
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        # A copy, as TLS detaches the socket before its handshake; both stand for one connection.
        request = getattr(_local, "request", None)
        if request:
            request.copies.append(made.dup())
        return made

    def request(self, *arguments: Any, **named: Any) -> Any:
        # Before, for a connection that comes from the pool; after, for one opened by the call.
        _note(self.sock)
        result = super().request(*arguments, **named)  # type: ignore[misc]
        _note(self.sock)
        return result


class WatchedHTTPConnection(_Watched, AWSHTTPConnection):  # type: ignore[misc]
    """A plain HTTP connection that registers its sockets."""


class WatchedHTTPSConnection(_Watched, AWSHTTPSConnection):  # type: ignore[misc]
    """An HTTPS connection that registers its sockets."""
