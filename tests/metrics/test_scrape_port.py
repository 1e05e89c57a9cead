"""The server that Prometheus scrapes."""

import socket
import threading
import urllib.request

from prometheus_client import CollectorRegistry

from bench.servers import free_port, wait_until
from tests.support.exporting import metrics_of
from worker.metrics.scrape_port import Port, expected


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
    hosts = ["127.0.0.1", *(["[::1]"] if socket.has_dualstack_ipv6() else [])]
    for host in hosts:  # Prometheus scrapes a pod by whichever address it has
        address = f"http://{host}:{number}/metrics?name[]=worker_samples_total"
        with urllib.request.urlopen(address, timeout=60) as response:
            text = response.read().decode()
        assert "worker_samples_total" in text
        assert "worker_step_seconds" not in text
    port.close()
    assert list(port.scrapes) == [host.strip("[]") for host in hosts]


def test_idle_connections_keep_nobody_from_scraping() -> None:
    """Nor do they take a thread and a descriptor each, which storage may need."""
    number = free_port()
    port = Port(number, CollectorRegistry())
    try:
        threads = threading.active_count()
        idle = [socket.create_connection(("127.0.0.1", number), 60) for _ in range(60)]
        for each in idle[::2]:
            each.sendall(b"GET /metrics HTTP/1.1\r\nHost")
        address = f"http://127.0.0.1:{number}/metrics"
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert answer.status == 200
        # Threads of connections that were closed take a moment to end.
        wait_until(
            lambda: threading.active_count() <= threads + 10,
            60,
            lambda: f"{threading.active_count()} threads",
        )
        for each in idle:
            each.close()
    finally:
        port.close()
