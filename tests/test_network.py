"""Nodes that meet although their own names are loopback addresses to them, and the loss of a rank."""

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.processes import Run, in_fresh_process
from tests.support.sabotage import killed_while_others_are_in_native_code, killed_while_reading
from worker.errors import ConfigurationError, DataError, InfrastructureError, StopRequested
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.ranks import gpu_faults as cuda
from worker.ranks import network_interface as interface
from worker.ranks import process_group as distributed
from worker.ranks.network_interface import interface_to, is_loopback, own_address
from worker.ranks.peer_liveness import Liveness
from worker.ranks.process_group import meaningful_errors, process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag

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


# --- two nodes -------------------------------------------------------------------------------


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


@pytest.mark.e2e
def test_nodes_whose_names_are_loopback_to_them_meet(
    nodes: list[str],
    job: dict[str, Any],
    write: Callable[[dict[str, Any]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job["train"]["epochs"] = 1
    manifest = write(job)
    environment = os.environ | {
        "WORKER_NODES": "2",
        "MASTER_ADDR": "first-node",
        "MASTER_PORT": "29500",
        "WORKER_RENDEZVOUS_SECONDS": "60",
    }
    started = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "worker", "train", manifest],
            env=environment | {"JOB_COMPLETION_INDEX": str(index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, name in enumerate(nodes)
    ]
    for process in started:
        _, log = process.communicate(timeout=120)
        assert process.returncode == 0, log


# --- lost ranks ------------------------------------------------------------------------------


def stuck_beside_a_lost_rank(folder: Path) -> None:
    """Rank 2 of 4 dies while the others are in native code, as a GPU's collective is."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        with process_group(rank, listener, StopFlag()):

            def lost(gone: int) -> None:
                (folder / f"{rank.rank}").write_text(f"{gone} {time.time()}")
                os._exit(69)

            Liveness(lost, 60)
            dist.barrier()
            if rank.rank == 2:
                (folder / "died").write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    assert (
        run_ranks(
            one_node(4),
            run,
            StopFlag(),
        )
        == 69
    )


def test_ranks_that_are_stuck_notice_a_lost_one(tmp_path: Path) -> None:
    in_fresh_process(stuck_beside_a_lost_rank, tmp_path)
    died = float((tmp_path / "died").read_text())
    for rank in (0, 1, 3):
        gone, at = (tmp_path / str(rank)).read_text().split()
        assert gone == "2"  # the one that was lost, not the next to end
        assert float(at) - died < 10


@pytest.mark.parametrize(
    "plan",
    [functools.partial(killed_while_others_are_in_native_code, 2), killed_while_reading],
    ids=["in a step", "while reading"],
)
def test_a_job_ends_soon_after_a_rank_is_lost(
    plan: Callable[[], None], run: Run, write: Callable[[dict[str, Any]], str], job: dict[str, Any]
) -> None:
    ended = run("train", "--nproc", "3", write(job), sabotage=plan)
    assert ended.code == 69, ended.err
    assert "lost rank" in ended.err or "lost another rank" in ended.err
    assert "still runs" not in ended.err  # the parent's patience of 30 s was not needed


def end_together(folder: Path) -> None:
    """A farewell, or an end that all ranks come to by themselves, is no loss."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        with process_group(rank, listener, StopFlag()):
            liveness = Liveness(lambda gone: (folder / f"lost {gone}").touch(), 60)
            time.sleep(0.3 * rank.rank)
            liveness.close()
            again = Liveness(lambda gone: (folder / f"lost {gone}").touch(), 60)
            dist.barrier()
            again.abandon()
            time.sleep(rank.rank)

    assert (
        run_ranks(
            one_node(3),
            run,
            StopFlag(),
        )
        == 0
    )
    assert not list(folder.iterdir())


def test_ranks_that_end_together_lose_nobody(tmp_path: Path) -> None:
    in_fresh_process(end_together, tmp_path)


def idle_for_long(folder: Path) -> None:
    """Ranks that have nothing to say for longer than they were waited for at first."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        with process_group(rank, listener, StopFlag()):
            liveness = Liveness(lambda gone: (folder / f"lost {gone}").touch(), 1)
            time.sleep(6)
            dist.barrier()
            liveness.close()

    assert (
        run_ranks(
            one_node(2),
            run,
            StopFlag(),
        )
        == 0
    )
    assert not list(folder.iterdir())


def test_a_long_job_loses_nobody(tmp_path: Path) -> None:
    in_fresh_process(idle_for_long, tmp_path)


@pytest.mark.parametrize(("stops", "kind"), [(True, StopRequested), (False, InfrastructureError)])
def test_a_rendezvous_that_breaks_in_a_stop_is_a_stop(
    stops: bool, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 has heard the signal and gone; rank 1 hears it a moment later."""

    def gone(*arguments: object) -> object:
        raise RuntimeError("Broken pipe")

    monkeypatch.setattr(distributed, "_open_rendezvous", gone)
    stop = StopFlag()
    if stops:
        threading.Timer(0.3, lambda: setattr(stop, "requested", True)).start()
    with (
        pytest.raises(kind),
        process_group(
            Rank(
                rank=1,
                world_size=2,
                local_rank=1,
                local_world_size=2,
                master_addr="localhost",
                master_port=1,
            ),
            None,
            stop,
        ),
    ):
        pass


# --- GPUs that do not work -------------------------------------------------------------------

DRIVER_OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (DRIVER_OLD, ConfigurationError, r"GPU 1 of .*too old.*update the node's driver"),
        (
            "Found no NVIDIA driver on your system.",
            ConfigurationError,
            "GPU 1 of .*no NVIDIA driver",
        ),
        (
            "CUDA error: system not yet initialized (error 802)",
            InfrastructureError,
            "is nvidia-fabricmanager running",
        ),
        ("CUDA error: invalid device ordinal", InfrastructureError, "CUDA cannot start.*ordinal"),
        (
            "CUDA driver initialization failed, you might not have a CUDA gpu.",
            InfrastructureError,
            "initialization failed",
        ),
        (
            "CUDA error: unknown error\nCompile with",
            InfrastructureError,
            "error; dmesg may say why",
        ),
    ],
)
def test_a_gpu_that_cannot_start_is_named(
    text: str, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(torch.cuda, "set_device", fail)
    with pytest.raises(kind, match=said):
        cuda.start_cuda(torch.device("cuda", 1))


def test_a_gpu_that_fails_in_training_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    with (
        pytest.raises(InfrastructureError, match=r"GPU 3 of .* failed: CUDA error: uncorrectable"),
        meaningful_errors(),
    ):
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nmore")


def test_an_assertion_on_the_device_is_a_bug() -> None:
    with pytest.raises(torch.AcceleratorError), meaningful_errors():
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")


def test_a_rank_that_fails_alone_on_a_gpu_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's farewell would wait for the others, and the rank's own exit code would be lost."""
    left: list[str] = []
    monkeypatch.setattr(distributed, "device_of", lambda rank: torch.device("cuda", 0))
    monkeypatch.setattr(distributed, "start_cuda", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *given, **named: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append("left"))
    rank = Rank(
        rank=0,
        world_size=1,
        local_rank=0,
        local_world_size=1,
        master_addr="localhost",
        master_port=0,
    )
    ended = pytest.raises(DataError)
    with ended, process_group(rank, socket.create_server(("127.0.0.1", 0)), StopFlag()):
        raise DataError("too many bad samples")
    assert not left
    with process_group(rank, socket.create_server(("127.0.0.1", 0)), StopFlag()):
        pass
    assert left == ["left"]


def test_ranks_that_nccl_refuses_are_configuration() -> None:
    error = dist.DistBackendError(
        "NCCL error in: x.cpp:93, invalid usage (run with NCCL_DEBUG=WARN"
    )
    with pytest.raises(ConfigurationError, match="two on one GPU: NCCL error"), meaningful_errors():
        raise error


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[/__w/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1653. "
            "This is typically caused by a remote worker crashing. GLHF!",
            "connection closed by peer [127.0.0.1]:1653",
        ),
        (
            "NCCL error in: /pytorch/c10d/NCCLUtils.cpp:94, remote process exited, gloo",
            "NCCL error: remote process exited, gloo",
        ),
    ],
    ids=["gloo", "NCCL"],
)
def test_why_a_rank_was_lost_is_told_in_few_words(text: str, reason: str) -> None:
    with pytest.raises(InfrastructureError) as raised, meaningful_errors():
        raise dist.DistBackendError(text)
    assert str(raised.value) == f"lost another rank ({reason}); its own log says why it ended"


def test_a_lost_rank_is_infrastructure() -> None:
    with pytest.raises(InfrastructureError, match="lost another rank"), meaningful_errors():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection closed by peer")
