"""An S3 server on loopback whose conditional writes are atomic, as those of real stores are."""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

_WRITES = ("put_object", "_key_response_post")


@contextlib.contextmanager
def start_s3_server() -> Iterator[str]:
    """Start moto's server and yield its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    lock = threading.RLock()
    original = {name: getattr(S3Response, name) for name in _WRITES}
    for name, method in original.items():
        setattr(S3Response, name, _under(lock, method))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        for name, method in original.items():
            setattr(S3Response, name, method)


def _under(lock: threading.RLock, method: Callable[..., Any]) -> Callable[..., Any]:
    """Let one request at a time into `method`.

    moto first looks for the object, then writes it, so without the lock two requests with
    `If-None-Match: *` that arrive together both succeed.
    """

    @functools.wraps(method)
    def locked(*args: Any, **settings: Any) -> Any:
        with lock:
            return method(*args, **settings)

    return locked
