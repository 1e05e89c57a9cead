"""Metrics on ports, and the last scrape of a job."""

import contextlib
import logging
import math
import socket
import threading
import time
import urllib.request

import pytest

from bench.servers import free_port, two_free_ports
from tests.support.exporting import RUN, Pushes, metrics_of, running
from worker.errors import ExitCode
from worker.metrics.exporters import announce, exported


def read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        text: str = response.read().decode()
    return text


def test_each_rank_has_a_port_and_rank_0_alone_speaks_for_the_job(
    gateway: Pushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = two_free_ports()
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
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
    with running(metrics_of()) as outcome:
        read(port)
    with caplog.at_level(logging.INFO):
        announce(RUN, ExitCode.DONE, outcome, lambda: math.inf)
    assert "last scrape" not in caplog.text  # scraped once, by whoever was curious
    with running(metrics_of()) as outcome:
        read(port)
        read(port)
    scrapes = outcome.read()["scrapes"]
    # As if they had been half a minute apart, which is how long the next one is waited for.
    earlier = {client: [times[0] - 30, times[-1]] for client, times in scrapes.items()}
    outcome.write(scrapes=earlier, kept=outcome.read()["kept"])
    seen: list[str] = []

    def look() -> None:
        deadline = time.monotonic() + 60
        while not seen and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                seen.append(read(port))

    thread = threading.Thread(target=look)
    thread.start()
    with caplog.at_level(logging.INFO):
        announce(RUN, ExitCode.DATA, outcome, lambda: math.inf)
    thread.join()
    assert seen
    assert "worker_exit_code" in seen[0]
    assert "last scrape" in caplog.text
    monkeypatch.setattr("worker.metrics.exporters.expected", lambda *_: {"127.0.0.1": 30.0})
    end, asked = time.monotonic() + 10, []  # what a stop leaves

    def left() -> float:
        asked.append(end - time.monotonic())
        return asked[-1]

    announce(RUN, ExitCode.DATA, outcome, left)
    assert end - time.monotonic() < 5.2
    # Half of it is kept: the first look that finds less ends the wait, then the push asks.
    assert sum(seconds < 4.9 for seconds in asked) <= 2


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
            end = time.monotonic() + 60
            while time.monotonic() < end and caplog.text.count("does not work") < 2:
                time.sleep(0.05)
            time.sleep(0.3)  # further intervals, in silence
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
        with running(metrics_of()) as outcome:
            pass
        announce(RUN, ExitCode.DONE, outcome, lambda: math.inf)
        assert time.monotonic() - began < 30
        for module in ("exporters", "pushgateway"):
            monkeypatch.setattr(f"worker.metrics.{module}.TIMEOUT_SECONDS", 60)
        began = time.monotonic()
        with exported(metrics_of(), RUN, 0, local_rank=0, outcome=outcome, patience=lambda: 0.1):
            pass
        announce(RUN, ExitCode.DONE, outcome, lambda: 0.1)
        assert time.monotonic() - began < 30  # in a stop, no longer than is left for it
