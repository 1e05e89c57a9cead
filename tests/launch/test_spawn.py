"""A parent and its ranks: exit codes, hangs, signals."""

import faulthandler
import os
import signal
import socket
import threading
import time

import pytest

from tests.support.processes import in_fresh_process
from worker.errors import (
    ConfigurationError,
    DataError,
    ExitCode,
    StopRequested,
)
from worker.forks import STOP_SIGNALS
from worker.launch.spawn import run_ranks
from worker.launch.topology import Spawn, one_node
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag


def end_with(*actions: object) -> int:
    """The exit code of ranks that raise, exit or kill themselves as told."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        action = actions[rank.rank]
        if isinstance(action, Exception):
            raise action
        if isinstance(action, signal.Signals):
            faulthandler.disable()
            os.kill(os.getpid(), action)
        if isinstance(action, float):
            time.sleep(action)

    return run_ranks(
        Spawn(
            node_rank=0,
            nodes=1,
            local_world_size=len(actions),
            master_addr="localhost",
            master_port=0,
        ),
        run,
        StopFlag(),
    )


def test_the_parent_returns_the_code_of_its_ranks() -> None:
    assert end_with(None, None) == 0
    assert end_with(None, ValueError("boom")) == ExitCode.BUG
    assert end_with(DataError("bad"), None, ValueError("boom")) == ExitCode.DATA
    assert end_with(None, signal.SIGKILL) == ExitCode.INFRASTRUCTURE
    assert end_with(None, signal.SIGSEGV) == ExitCode.BUG
    assert end_with(ConfigurationError("x")) == ExitCode.CONFIGURATION


def test_a_rank_that_hangs_after_a_peer_ended_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.launch.spawn._PEER_GRACE_SECONDS", 0.2)
    began = time.monotonic()
    assert end_with(60.0, signal.SIGKILL) == ExitCode.INFRASTRUCTURE
    assert end_with(60.0, StopRequested("before the ranks met")) == ExitCode.STOPPED
    assert time.monotonic() - began < 30


def test_signals_reach_every_rank() -> None:
    stop = StopFlag()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop.install()

    def run(rank: Rank, listener: socket.socket | None) -> None:
        if rank.rank == 1:
            os.kill(os.getppid(), signal.SIGUSR1)
        wait_for_stop(stop)

    try:
        assert run_ranks(one_node(3), run, stop) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_stop(stop: StopFlag) -> None:
    deadline = time.monotonic() + 60
    while not stop.requested and time.monotonic() < deadline:
        time.sleep(0.01)
    if not stop.requested:
        raise ValueError("never heard of it")


def stop_by_another_thread() -> None:
    stop = StopFlag()
    stop.install()

    def take() -> None:
        time.sleep(0.5)  # until the main thread waits for the ranks
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

    threading.Thread(target=take).start()
    assert run_ranks(one_node(2), lambda *_: wait_for_stop(stop), stop) == 0


def test_a_signal_that_another_thread_takes_reaches_the_ranks() -> None:
    """As the kernel has it while the main thread holds signals back to fork."""
    in_fresh_process(stop_by_another_thread)
