"""A scrape port that records its clients and how often they scrape."""

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

_MAX_CLIENTS = 8  # with recorded scrapes; the records must fit into `SharedOutcome`
_MAX_CONNECTIONS = 8  # each takes a thread and a file descriptor
_REQUEST_SECONDS = 5.0  # socket timeout of a connection
_POLL_SECONDS = 0.05  # upper bound on the time to close

Scrapes = dict[str, list[float]]
"""Times of each client's last two scrapes, in Unix seconds, by address."""


class _Quiet(WSGIRequestHandler):
    timeout = _REQUEST_SECONDS

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # clients that send nothing or hang up
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingWSGIServer):
    """Server with a limited number of connections; at the limit, a new one displaces the oldest.

    This keeps idle connections from blocking other clients or using up the file descriptors that
    storage needs.
    """

    request_queue_size = _MAX_CONNECTIONS
    # IPv4 as well, through mapped addresses: a pod may have either or both.
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # A dict serves as an ordered set: the first key is the oldest connection.
        self._open: dict[socket.socket, None] = {}
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        # A connection's own thread removes it from `_open`, under the lock, before closing it, so
        # the oldest one is still open here and its descriptor has not been reused.
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= _MAX_CONNECTIONS else None
            if oldest:
                del self._open[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # which ends its thread
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing about clients that hang up: anybody may connect."""


class Port:
    """HTTP server that exposes a registry until closed. Raises `OSError` if the port is taken."""

    def __init__(self, port: int, registry: CollectorRegistry) -> None:
        self.scrapes: Scrapes = {}
        self._app = make_wsgi_app(registry)
        self._server = make_server("", port, self._answer, _Server, _Quiet)
        serve = functools.partial(self._server.serve_forever, poll_interval=_POLL_SECONDS)
        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop accepting connections, without waiting for responses in progress."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
        body: Iterable[bytes] = self._app(environ, start_response)
        client = environ.get("REMOTE_ADDR", "").removeprefix("::ffff:")  # an IPv4 client
        if client in self.scrapes or len(self.scrapes) < _MAX_CLIENTS:
            self.scrapes[client] = [*self.scrapes.get(client, [])[-1:], time.time()]
        return body


def expected(scrapes: Scrapes, now: float) -> dict[str, float]:
    """Return the seconds to wait for the next scrape of each client that scrapes regularly.

    A pure function.
    """
    gaps = {client: at[-1] - at[0] for client, at in scrapes.items() if len(at) > 1}
    # Half an interval and a second allow for jitter; a client silent for three intervals is gone.
    return {
        client: 1.5 * gap + 1
        for client, gap in gaps.items()
        if now - scrapes[client][-1] < 3 * gap + 1
    }
