"""Signals that stop a job, and how long a stop may take."""

import os
import signal
import sys
import time
from multiprocessing import get_context

import pytest

from worker.environment import Settings
from worker.errors import ConfigurationError
from worker.forks import STOP_SIGNALS
from worker.ranks.stop_signal import StopFlag, budget


def test_how_long_a_stop_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget(signal.SIGTERM, 1000.0, {}) == 29
    monkeypatch.setenv("WORKER_GRACE_SECONDS", "120")
    assert budget(signal.SIGTERM, 1000.0, {}) == 119
    slurm = {"SLURM_JOB_END_TIME": "1060"}
    assert budget(signal.SIGUSR1, 1000.0, slurm) == 59
    assert budget(signal.SIGUSR2, 1000.0, slurm) == 59
    assert budget(signal.SIGTERM, 1000.0, slurm) == 119, "KillWait follows, whatever the limit"
    monkeypatch.setenv("WORKER_GRACE_SECONDS", "soon")
    with pytest.raises(ConfigurationError, match="WORKER_GRACE_SECONDS: must be a whole number"):
        Settings.from_env().require_valid()


def interrupt(times: int, terminal: bool) -> None:
    """Have SIGINT come a few times, a stop being awaited."""
    stop = StopFlag()
    stop.has_begun = True
    stop.install()
    sys.stderr.isatty = lambda: terminal  # type: ignore[method-assign]
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(0 if stop.requested else 1)


@pytest.mark.parametrize(
    ("times", "terminal", "code"), [(1, True, 0), (2, True, 75), (3, False, 0)]
)
def test_ctrl_c_twice_in_a_terminal_does_not_wait(times: int, terminal: bool, code: int) -> None:
    process = get_context("forkserver").Process(target=interrupt, args=(times, terminal))
    process.start()
    process.join(30)
    assert process.exitcode == code


def test_a_hangup_stays_ignored_under_nohup() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        StopFlag().install()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        stop = StopFlag()
        stop.install()
        assert signal.getsignal(signal.SIGHUP) == stop._handle
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_later_signal_may_shorten_the_time_for_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 600))
    stop = StopFlag()
    stop.has_begun = True
    stop._handle(signal.SIGUSR1, None)
    assert 590 < stop.remaining() < 600
    stop._handle(signal.SIGTERM, None)
    assert stop.remaining() < 30
    stop._handle(signal.SIGUSR1, None)
    assert stop.remaining() < 30
