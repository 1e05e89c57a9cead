"""The network interface that leads to other nodes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Write
from tests.support.stores import keys
from worker.ranks import network_interface as interface
from worker.ranks.network_interface import interface_to, is_loopback, own_address
from worker.store import open_store

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
wlan0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
ib0\t00010A0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
gone\t00020A0A\t00000000\t0200\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


ROUTES_6 = """\
fd770000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 ib0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0
00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000001 00000000 80200001 lo
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo
"""


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("10.10.1.7", "ib0"),
        ("::ffff:10.10.1.7", "ib0"),
        ("10.3.2.1", "eth0"),
        ("192.168.0.1", "eth0"),
        ("10.10.2.1", "eth0"),
        ("fd77::5", "ib0"),
        ("fe80::5%eth0", "eth0"),
        ("2001:db8::1", "eth0"),
    ],
)
def test_the_most_specific_route_that_is_up_counts(
    address: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("_ROUTES", ROUTES), ("_ROUTES_6", ROUTES_6)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(interface, name, tmp_path / name)
    assert interface_to(address) == found


def test_without_routes_there_is_no_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "_ROUTES", Path("/nowhere"))
    assert interface_to("10.0.0.1") is None


def test_addresses() -> None:
    assert own_address("localhost", 1) in ("127.0.0.1", "::1")
    assert own_address("no-such-host.invalid", 1) is None
    assert is_loopback("127.0.1.1")
    assert is_loopback("::1")
    assert not is_loopback("10.0.0.1")


@pytest.fixture(params=["10.77.0", "fd77:"], ids=["IPv4", "IPv6"])
def nodes(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Two network namespaces joined by a cable, whose hosts files are as Debian installs them."""
    net, names = request.param, [f"worker-test-{letter}" for letter in "ab"]
    separator, length = (":", 64) if ":" in net else (".", 24)

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    try:
        ip("link", "add", "wt-a", "type", "veth", "peer", "name", "wt-b")
        for index, (name, link) in enumerate(zip(names, ("wt-a", "wt-b"), strict=True)):
            folder = Path("/etc/netns", name)
            folder.mkdir(parents=True, exist_ok=True)
            first = "127.0.1.1" if index == 0 else f"{net}{separator}1"
            own = f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n{first} first-node\n"
            (folder / "hosts").write_text(own)
            ip("netns", "add", name)
            ip("link", "set", link, "netns", name)
            address = f"{net}{separator}{index + 1}/{length}"
            nodad = ["nodad"] if ":" in net else []
            ip("-n", name, "addr", "add", address, "dev", link, *nodad)
            for device in ("lo", link):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
            (Path("/etc/netns") / name / "hosts").unlink(missing_ok=True)
            (Path("/etc/netns") / name).rmdir()


def start_on(nodes: list[str], manifest: str) -> list[subprocess.Popen[str]]:
    """Start a job on two nodes."""
    environment = os.environ | {
        "WORKER_NODES": "2",
        "MASTER_ADDR": "first-node",
        "MASTER_PORT": "29500",
        "WORKER_RENDEZVOUS_SECONDS": "60",
    }
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "worker", "train", manifest],
            env=environment | {"JOB_COMPLETION_INDEX": str(index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, name in enumerate(nodes)
    ]


@pytest.mark.e2e
def test_nodes_whose_names_are_loopback_to_them_meet(
    nodes: list[str], job: dict[str, Any], write: Write
) -> None:
    job["train"]["epochs"] = 1
    for process in start_on(nodes, write(job)):
        _, log = process.communicate(timeout=120)
        assert process.returncode == 0, log


@pytest.mark.e2e
def test_a_node_without_network_is_noticed_in_seconds(
    nodes: list[str], job: dict[str, Any], write: Write
) -> None:
    """No process has died, and nothing closes a connection."""
    job["train"]["epochs"] = 5000
    started = start_on(nodes, write(job))
    store = open_store(job["output"])
    deadline = time.monotonic() + 120
    while not any(key.startswith("commits/") for key in keys(store)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    subprocess.run(["ip", "-n", nodes[1], "link", "set", "wt-b", "down"], check=True)
    cut = time.monotonic()
    for process in started:
        _, log = process.communicate(timeout=120)
        assert process.returncode == 69, log
        assert "lost" in log
    assert time.monotonic() - cut < 60  # of it 9 s of silence, then the farewells
