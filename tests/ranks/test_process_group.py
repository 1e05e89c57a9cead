"""Failures of a process group get the right exit code."""

import socket
import threading

import pytest
import torch
import torch.distributed as dist

from worker.errors import ConfigurationError, DataError, InfrastructureError, StopRequested
from worker.ranks import process_group as distributed
from worker.ranks.process_group import meaningful_errors, process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag


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
        monkeypatch.setattr(distributed, "_HEAR_SECONDS", 60.0)
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
    with (
        pytest.raises(ConfigurationError, match="if two share one GPU: NCCL error"),
        meaningful_errors(),
    ):
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
