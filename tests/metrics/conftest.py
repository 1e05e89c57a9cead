"""A Pushgateway that notes what it is sent."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.support.exporting import Pushes


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pushes]:
    """What a Pushgateway was sent: (method, path, body, authorization)."""
    received: Pushes = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            login = self.headers.get("Authorization", "")
            received.append((self.command, self.path, body, login))
            self.send_response(200)
            self.end_headers()

        do_POST = do_DELETE = do_PUT  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WORKER_PUSHGATEWAY", f"http://127.0.0.1:{server.server_port}")
    yield received
    server.shutdown()
    server.server_close()
