"""A proxy in front of an S3 server that does to requests what networks and servers do."""

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

STALL_SECONDS = 8.0
DRIP_SECONDS = 0.3

FAULTS = (
    "500", "503", "reset", "stall", "truncated", "wrong bytes", "412", "409", "expired",
    "lost answer",
)  # fmt: skip
_ERRORS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "501": (501, "NotImplemented"),
    "405": (405, "MethodNotAllowed"),
    "507": (507, "XMinioStorageFull"),
    "522": (522, "Timeout"),
    "403": (403, "AccessDenied"),
    "412": (412, "PreconditionFailed"),
    "409": (409, "ConditionalRequestConflict"),
    "expired": (403, "ExpiredToken"),
}


@dataclass(frozen=True)
class Request:
    """What is asked for; `number` counts all requests from 1."""

    number: int
    method: str
    path: str
    conditional: bool
    key: str
    """The access key that signed it."""


Plan = Callable[[Request], str | None]
"""Which fault a request meets, if any."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `target`, but for those that `plan` has something else in mind for."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.plan: Plan = lambda request: None
        self.met: list[tuple[str, Request]] = []
        self._lock = threading.Lock()
        self._number = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, method: str, path: str, conditional: bool, key: str) -> str | None:
        """What this request meets; every one is counted."""
        with self._lock:
            self._number += 1
            request = Request(self._number, method, path, conditional, key)
            fault = self.plan(request)
            if fault:
                self.met.append((fault, request))
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        conditional = self.headers.get("If-None-Match") is not None
        key = self.headers.get("Authorization", "").partition("Credential=")[2].split("/")[0]
        fault = self.server.fault(self.command, self.path, conditional, key)
        if fault in _ERRORS:
            self._refuse(*_ERRORS[fault])
        elif fault == "reset":
            self._reset()
        elif fault == "stall":
            time.sleep(STALL_SECONDS)
            self.close_connection = True
        elif fault in ("301", "302", "307", "308"):
            self._answer(int(fault), b"", Location=f"https://u:p@store.invalid{self.path}?x=secret")
        elif fault in ("html", "blank"):
            self._answer(200, b"<!doctype html><p>Welcome" if fault == "html" else b"")
        elif fault in ("404 html", "403 html"):  # a web server, whose pages may be sound XML
            self._answer(int(fault[:3]), b"<html><body>nothing here</body></html>")
        elif fault == "drip head":
            self._drip(b"HTTP/1.1 200 OK\r\nX-Drip: " + b"x" * 10_000)
        else:
            self._forward(body, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _forward(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(self.server.target, timeout=30)
        dropped = {"connection"} | ({"range"} if fault == "whole" else set())
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        length = answer.headers.get("Content-Length") if self.command == "HEAD" else len(data)
        upstream.close()
        if fault == "lost answer":
            self._reset()
            return
        if fault == "wrong bytes" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if self.command != "HEAD":
                chunk = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
                self.wfile.write(chunk + b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if fault == "drip":
            self._drip(data)
        elif fault == "truncated":
            self.wfile.write(data[: len(data) // 2])
            self._reset()
        elif self.command != "HEAD":
            self.wfile.write(data)

    def _drip(self, data: bytes) -> None:
        """A byte now and then, which keeps every time-out of a socket from coming up."""
        with contextlib.suppress(OSError):
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(DRIP_SECONDS)
        self.close_connection = True

    def _answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        data = f"<Error><Code>{code}</Code><Message>a test's doing</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """Hang up with a RST, as a load balancer does that gives up."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A proxy on loopback while inside."""
    server = Proxy(target)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
