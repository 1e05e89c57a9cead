"""Metrics out of the process: what a gateway gets, and that none can fail training."""

import base64
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from worker.metrics.export import exported
from worker.metrics.registry import Metrics

RUN = "s3://bucket/run/"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, str]]]:
    """What a Pushgateway was sent: (method, path, body)."""
    received: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.append(("POST", self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WORKER_PUSHGATEWAY", f"127.0.0.1:{server.server_port}")
    yield received
    server.shutdown()
    server.server_close()


def test_a_run_is_one_group_of_the_gateway(gateway: list[tuple[str, str, str]]) -> None:
    metrics = Metrics("ants", RUN, 0)
    metrics.set_rate("head", 1e-3)
    with exported(metrics, "ants", RUN):
        metrics.step.set(7)
    _, path, body = gateway[-1]
    run = base64.urlsafe_b64encode(RUN.encode()).decode()
    assert path == f"/metrics/job/ants/run@base64/{run}"
    assert f'worker_step{{job="ants",rank="0",run="{RUN}"}} 7.0' in body
    assert f'worker_learning_rate{{group="head",job="ants",rank="0",run="{RUN}"}} 0.001' in body
    assert "_created" not in body


def test_no_gateway_can_fail_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORKER_METRICS_PORT", "many")
    monkeypatch.setenv("WORKER_METRICS_TEXTFILE", "/nowhere/at/all")
    with socket.create_server(("127.0.0.1", 0)) as strange:

        def greet() -> None:
            for _ in range(2):
                client, _ = strange.accept()
                client.sendall(b"SSH-2.0-OpenSSH\r\n")
                client.close()

        threading.Thread(target=greet, daemon=True).start()
        monkeypatch.setenv("WORKER_PUSHGATEWAY", f"127.0.0.1:{strange.getsockname()[1]}")
        with caplog.at_level(logging.WARNING), exported(Metrics("ants", RUN, 0), "ants", RUN):
            pass
    for setting in ("WORKER_METRICS_PORT", "WORKER_METRICS_TEXTFILE", "WORKER_PUSHGATEWAY"):
        assert f"metrics: {setting} does not work" in caplog.text
