"""Metrics out of the process: who gets what, and that nobody can fail or delay training."""

import base64
import contextlib
import logging
import math
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bench.servers import free_port
from worker.errors import ExitCode
from worker.metrics.docs_table import describe_metrics
from worker.metrics.exporters import announce, exported
from worker.metrics.pushgateway import Gateway
from worker.metrics.registry import Metrics
from worker.metrics.run_labels import Owner
from worker.metrics.scrape_port import Port, expected
from worker.metrics.shared_outcome import SharedOutcome
from worker.metrics.textfile import textfile
from worker.store import open_store
from worker.store.traffic_counts import listen

RUN = Owner("ants", "s3://bucket/run/")
GROUP = f"/metrics/job/ants/run@base64/{base64.urlsafe_b64encode(RUN.run.encode()).decode()}"
Pushes = list[tuple[str, str, str, str]]


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


def metrics_of(rank: int = 0) -> Metrics:
    return Metrics(RUN.job, RUN.run, rank)


@contextlib.contextmanager
def running(metrics: Metrics, rank: int = 0) -> Iterator[SharedOutcome]:
    board = SharedOutcome()
    with exported(metrics, RUN, rank, local_rank=rank, board=board, patience=lambda: math.inf):
        yield board


def read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        text: str = response.read().decode()
    return text


def test_the_outcome_takes_the_place_of_what_was_pushed(gateway: Pushes) -> None:
    metrics = metrics_of()
    metrics.attempt().set(2)
    metrics.rate("head").set(1e-3)
    metrics.step().set(7)
    with running(metrics) as board:
        while len(gateway) < 3:
            time.sleep(0.01)
    announce(RUN, ExitCode.STOPPED, board, lambda: math.inf)
    *forgotten, (_, path, live, _), (method, same, left, _) = gateway
    # What the last attempt has left goes first: it is another's exit code.
    assert [push[:2] for push in forgotten] == [
        ("DELETE", GROUP),
        ("DELETE", f"{GROUP}/superseded/true"),
    ]
    # A PUT replaces the group as a whole, so nothing of a run that ended is left to go stale.
    assert (method, path, same) == ("PUT", GROUP, GROUP)
    assert f'worker_learning_rate{{group="head",job="ants",run="{RUN.run}"}} 0.001' in live
    assert "worker_learning_rate" not in left
    assert f'worker_step{{job="ants",run="{RUN.run}"}} 7.0' in left
    assert f'worker_exit_code{{job="ants",run="{RUN.run}"}} 75.0' in left
    assert 'reason="stopped"' in left
    assert "_created" not in live + left
    # Told with the same words, as node exporter drops a metric that has two.
    helps = [set(re.findall(r"# HELP (worker_step .*)", text)) for text in (live, left)]
    assert helps[0] == helps[1]


def test_a_start_that_was_refused_takes_nothing_away(gateway: Pushes) -> None:
    announce(RUN, ExitCode.CONFIGURATION, SharedOutcome(), lambda: math.inf)
    ((method, path, body, _),) = gateway
    assert (method, path) == ("POST", GROUP)
    assert "worker_step" not in body


def test_who_was_superseded_leaves_the_group_to_the_newer_attempt(gateway: Pushes) -> None:
    announce(RUN, ExitCode.SUPERSEDED, SharedOutcome(), lambda: math.inf)
    assert [path for _, path, _, _ in gateway] == [f"{GROUP}/superseded/true"]


def test_a_login_of_the_gateway_is_sent_and_not_shown(
    gateway: Pushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = os.environ["WORKER_PUSHGATEWAY"].replace("//", "//me:p%40ss@")
    monkeypatch.setenv("WORKER_PUSHGATEWAY", address)
    announce(RUN, ExitCode.DONE, SharedOutcome(), lambda: math.inf)
    assert gateway[0][3] == f"Basic {base64.b64encode(b'me:p@ss').decode()}"
    found = Gateway.from_environment()
    assert found
    assert "@" not in found.address


def test_each_rank_has_a_port_and_rank_0_alone_speaks_for_the_job(
    gateway: Pushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
    first, second = metrics_of(0), metrics_of(1)
    for metrics in (first, second):
        metrics.loss("train").set(0.5)
        metrics.step_seconds().observe(0.1)
    with running(first), running(second, rank=1):
        texts = [read(port), read(port + 1)]
    assert ["worker_loss" in text for text in texts] == [True, False]
    assert ['rank="1"' in text for text in texts] == [False, True]
    # Scraped already: pushed as well, each series would stand twice in Prometheus.
    assert {push[0] for push in gateway} <= {"DELETE"}


def test_who_scrapes_sees_the_end_and_nobody_else_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
    with running(metrics_of()) as board:
        read(port)
    began = time.monotonic()
    announce(RUN, ExitCode.DONE, board, lambda: math.inf)
    assert time.monotonic() - began < 1  # scraped once, by whoever was curious
    with running(metrics_of()) as board:
        read(port)
        read(port)
    seen: list[str] = []

    def look() -> None:
        while not seen:
            with contextlib.suppress(OSError):
                seen.append(read(port))

    thread = threading.Thread(target=look)
    thread.start()
    announce(RUN, ExitCode.DATA, board, lambda: math.inf)
    thread.join()
    assert "worker_exit_code" in seen[0]
    with running(metrics_of()) as board:
        read(port)
        read(port)
    end = time.monotonic() + 1  # what a stop leaves
    announce(RUN, ExitCode.DATA, board, lambda: end - time.monotonic())
    assert 0.2 < end - time.monotonic() < 0.6  # half of it is kept


def test_clients_that_come_regularly_are_expected_each_at_its_own_pace() -> None:
    scrapes = {
        "prometheus": [100.0, 115.0],
        "replica": [102.0, 117.0],
        "slow": [60.0, 120.0],
        "curl": [118.0],
        "gone": [10.0, 11.0],
    }
    assert expected(scrapes, 120.0) == {"prometheus": 23.5, "replica": 23.5, "slow": 91.0}


def test_a_part_of_the_metrics_can_be_asked_for() -> None:
    number = free_port()
    port = Port(number, metrics_of().registry)
    address = f"http://127.0.0.1:{number}/metrics?name[]=worker_samples_total"
    with urllib.request.urlopen(address, timeout=5) as response:
        text = response.read().decode()
    port.close()
    assert "worker_samples_total" in text
    assert "worker_step_seconds" not in text
    assert list(port.scrapes) == ["127.0.0.1"]


def test_nothing_is_shown_that_is_not_known() -> None:
    metrics = metrics_of()
    shown = {family.name for family in metrics.registry.collect() if family.samples}
    assert "worker_accuracy_ratio" not in shown
    assert "worker_last_commit_timestamp_seconds" not in shown
    assert "worker_bad_samples" not in shown
    assert {"worker_samples", "worker_start_timestamp_seconds"} <= shown


def test_files_of_ranks_go_and_that_of_the_outcome_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKER_METRICS_TEXTFILE", str(tmp_path))
    orphan = textfile(str(tmp_path), RUN, 1)  # of a rank that was killed
    for file in (orphan, textfile(str(tmp_path), RUN)):
        file.write_text("old")
    with running(metrics_of()) as board:
        while not textfile(str(tmp_path), RUN, 0).exists():
            time.sleep(0.01)
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())
    orphan.write_text("old")
    announce(RUN, ExitCode.BUG, board, lambda: math.inf)
    (file,) = tmp_path.iterdir()
    assert "worker_exit_code" in file.read_text()
    # Another run of the same job's name must not share it.
    assert file != textfile(str(tmp_path), Owner(RUN.job, "s3://bucket/other/"))


def test_no_way_out_can_fail_training_and_each_fault_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("worker.metrics.exporters._INTERVAL_SECONDS", 0.05)
    monkeypatch.setenv("WORKER_METRICS_TEXTFILE", "/nowhere/at/all")
    metrics = metrics_of()
    with socket.create_server(("127.0.0.1", 0)) as strange:

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = strange.accept()
                    client.sendall(b"SSH-2.0-OpenSSH\r\n")
                    client.close()

        threading.Thread(target=greet, daemon=True).start()
        monkeypatch.setenv("WORKER_PUSHGATEWAY", f"127.0.0.1:{strange.getsockname()[1]}")
        with caplog.at_level(logging.WARNING), running(metrics):
            time.sleep(0.3)
        told = caplog.text.count("metrics: WORKER_PUSHGATEWAY does not work")
        monkeypatch.setenv("WORKER_METRICS_PORT", "many")
        with caplog.at_level(logging.WARNING), running(metrics):
            pass
    assert told == caplog.text.count("METRICS_TEXTFILE does not work") - 1 == 1
    assert "WORKER_METRICS_PORT: must be a whole number" in caplog.text
    text = "".join(str(family.samples) for family in metrics.registry.collect())
    assert "'way': 'pushgateway'" in text
    assert "'way': 'textfile'" in text


def test_a_gateway_that_does_not_answer_delays_the_end_by_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("exporters", "pushgateway"):
        monkeypatch.setattr(f"worker.metrics.{module}.TIMEOUT_SECONDS", 0.6)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("WORKER_PUSHGATEWAY", f"127.0.0.1:{deaf.getsockname()[1]}")
        began = time.monotonic()
        with running(metrics_of()) as board:
            pass
        announce(RUN, ExitCode.DONE, board, lambda: math.inf)
        assert time.monotonic() - began < 3
        began = time.monotonic()
        with exported(metrics_of(), RUN, 0, local_rank=0, board=board, patience=lambda: 0.1):
            pass
        announce(RUN, ExitCode.DONE, board, lambda: 0.1)
        assert time.monotonic() - began < 0.5  # in a stop, no longer than is left for it


def test_a_board_outlives_who_wrote_it() -> None:
    board = SharedOutcome()
    assert board.read() == {}

    def write_and_die() -> None:
        board.write(kept={"step": 3.0})
        os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=write_and_die)
    child.start()
    child.join()
    assert board.read() == {"kept": {"step": 3.0}}
    board._memory[:] = b'{"kept"'.ljust(4096, b"\0")  # killed in the middle of it
    assert board.read() == {}


def test_requests_to_storage_are_counted_by_operation(bucket: str) -> None:
    metrics = metrics_of()
    listen(metrics)
    for store in (open_store(f"{bucket}/a/"),):
        store.put("x", b"12345")
        store.get("x")
        list(store.list())
        assert store.put_if_absent("y", b"123")
    found = {
        (sample.name, sample.labels["operation"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if "operation" in sample.labels
    }
    for operation in ("put", "get", "list", "create"):
        assert found["worker_store_requests_total", operation] == 1
        assert found["worker_store_request_seconds_count", operation] == 1
    assert found["worker_store_bytes_total", "put"] == 5
    assert found["worker_store_bytes_total", "get"] == 5
    assert found["worker_store_bytes_total", "create"] == 3


def test_the_documentation_lists_all_metrics() -> None:
    page = Path(__file__).parents[1] / "docs/metrics.md"
    assert describe_metrics() in page.read_text()


def test_idle_connections_keep_nobody_from_scraping() -> None:
    """Nor do they take a thread and a descriptor each, which storage may need."""
    number = free_port()
    port = Port(number, CollectorRegistry())
    try:
        threads = threading.active_count()
        idle = [socket.create_connection(("127.0.0.1", number), 5) for _ in range(60)]
        for each in idle[::2]:
            each.sendall(b"GET /metrics HTTP/1.1\r\nHost")
        address = f"http://127.0.0.1:{number}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.status == 200
        assert threading.active_count() <= threads + 10
        for each in idle:
            each.close()
    finally:
        port.close()
