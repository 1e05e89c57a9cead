"""Sources on web servers: cut bodies are noticed, failures give their cause, secrets stay hidden."""

import http.server
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.processes import Run
from tests.support.stores import open_index
from tests.support.tars import WHOLE, labeled, tar
from worker.errors import InfrastructureError
from worker.ingest.rows import UnitRows
from worker.ingest.web import read_web

TAR = tar(labeled(12))
CUTS = {
    "in a header": 100,
    "in an image": 1800,
    "at a member": 1024,
    "between samples": 2 * 1024 + 1024,
    "before the end mark": -(-len(TAR.rstrip(b"\0")) // 512) * 512,
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves TAR; the path says what goes wrong."""

    protocol_version = "HTTP/1.1"
    requests = itertools.count()

    def do_GET(self) -> None:
        name = self.path.strip("/").removesuffix(".tar").replace("%20", " ")
        kind, _, cut = name.partition("+")
        if kind == "404":
            self.send_error(404, "Not Found")
            return
        if kind == "login" and self.headers.get("Authorization") != "Basic bWU6aHVudGVyMg==":
            self.send_error(401, "Unauthorized")
            return
        if kind == "busy":  # and then silent
            if next(self.requests) < 2:
                self.send_error(503, "Slow Down")
            else:
                time.sleep(8)
            return
        if kind == "endless":  # always cut, after more than a deadline's worth of bytes
            self.send_response(200)
            self.send_header("Content-Length", str(300_000))
            self.end_headers()
            self.wfile.write(bytes(200_000))
            self.close_connection = True
            return
        body = TAR[: CUTS[cut]] if cut else TAR
        self.send_response(200)
        if kind == "length":
            self.send_header("Content-Length", str(len(TAR)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if kind == "slow":
            for n in range(200):
                self.wfile.write(body[n : n + 1])
                time.sleep(0.1)
            return
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a slow machine needs."""
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "20")


@pytest.fixture
def short(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less time, for faults that last."""
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "6")


def test_tars_on_a_web_server(server: str, run: Run, tmp_path: Any) -> None:
    ended = run("pack", f"http://{server}/whole.tar", f"{tmp_path}/set")
    assert ended.code == 0, ended.err
    assert open_index(f"{tmp_path}/set").samples == 12


@pytest.mark.parametrize("kind", ["length", "none"])
@pytest.mark.parametrize("cut", CUTS)
def test_no_cut_goes_unnoticed(
    kind: str, cut: str, server: str, run: Run, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "2")
    address = f"http://{server}/{kind}+{cut.replace(' ', '%20')}.tar"
    ended = run("pack", address, f"{tmp_path}/set", "--workers", "1")
    assert ended.code in (65, 69), ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "set" / "index.json").exists()


def test_a_missing_tar_has_its_cause(server: str, run: Run, tmp_path: Any) -> None:
    ended = run("pack", f"http://{server}/404.tar", f"{tmp_path}/set")
    assert ended.code == 78
    assert "the server answers 404 Not Found; check the address" in ended.err


def test_a_slow_body_has_its_cause(short: None, server: str, run: Run, tmp_path: Any) -> None:
    ended = run("pack", f"http://{server}/slow.tar", f"{tmp_path}/set")
    assert ended.code == 69
    assert "sent no complete response within 6" in ended.err


def test_a_try_that_the_deadline_cuts_off_does_not_hide_the_cause(short: None, server: str) -> None:
    with pytest.raises(InfrastructureError, match="the server answers 503 Slow Down"):
        read_web(f"http://{server}/busy.tar")


def test_a_login_is_used_and_never_shown(server: str, run: Run, tmp_path: Any) -> None:
    ended = run("pack", f"http://me:hunter2@{server}/login.tar", f"{tmp_path}/set")
    assert ended.code == 0, ended.err
    written = (tmp_path / "set" / "dataset.json").read_text()
    assert "hunter2" not in ended.err + ended.out + written
    refused = run("pack", f"http://me:hunter3@{server}/login.tar", f"{tmp_path}/no")
    assert refused.code == 78
    assert "401" in refused.err
    assert "hunter3" not in refused.err + refused.out


def test_a_bad_image_of_a_table_is_named_without_login_and_signature(
    server: str, run: Run, tmp_path: Any
) -> None:
    (tmp_path / "t.csv").write_text(
        f"image,label\nhttp://me:hunter2@{server}/whole.jpg?X-Amz-Signature=deadbeef,ants\n"
    )
    refused = run("pack", f"{tmp_path}/t.csv", f"{tmp_path}/set")
    assert refused.code == 65
    assert "/whole.jpg?[hidden]: is not a JPEG" in refused.err
    (path,) = tmp_path.glob("set/.pack/**/*.npz")
    staged = repr(UnitRows.decode(path.read_bytes()))
    assert "whole.jpg" in staged
    for secret in ("hunter2", "deadbeef"):
        assert secret not in refused.err + refused.out
        assert secret not in staged


def test_sources_of_several_kinds_together(server: str, run: Run, tmp_path: Any) -> None:
    (tmp_path / "x.tar").write_bytes(WHOLE)
    ended = run("pack", f"http://{server}/whole.tar::{tmp_path}/x.tar", f"{tmp_path}/set")
    assert ended.code == 0, ended.err
    assert open_index(f"{tmp_path}/set").samples == 16


def test_a_body_that_is_always_cut_is_not_read_forever(
    short: None, server: str, run: Run, tmp_path: Any
) -> None:
    ended = run("pack", f"http://{server}/endless.tar", f"{tmp_path}/set")
    assert ended.code == 69
    assert "ended after 200000 of 300000 bytes" in ended.err
