"""Signals that stop a job, and how long a stop may take."""

import logging
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


@pytest.mark.parametrize("commits", [True, False])
def test_only_a_command_that_commits_speaks_of_checkpoints(
    commits: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(logging.INFO):
        StopFlag(commits=commits)._acknowledge(signal.SIGINT)
    assert "pressing Ctrl-C again exits at once" in caplog.text
    assert ("since the last checkpoint" in caplog.text) == commits


def time_left(
    numbers: tuple[int, ...], *, terminal: bool, in_rank: bool, torchrun: bool = False
) -> None:
    """Exit with the seconds left after signals, at most 99, here or in a rank that is forked."""
    if torchrun:
        os.environ["TORCHELASTIC_RUN_ID"] = "x"
    stop = StopFlag()
    stop.has_begun = True
    stop.install()
    sys.stderr.isatty = lambda: terminal  # type: ignore[method-assign]
    (installed, install), (sent, send) = os.pipe(), os.pipe()
    child = os.fork() if in_rank else 0
    if in_rank and not child:
        # As a trial of a sweep does, which has a flag of its own.
        stop = StopFlag(parent=stop)
        stop.has_begun = True
        stop.install()
        os.write(install, b".")
    if child:
        os.read(installed, 1)
        # As run_ranks does: a rank gets SIGTERM for SIGINT, after the parent.
        for number in numbers:
            os.kill(os.getpid(), number)
            os.kill(child, signal.SIGTERM)
        os.write(send, b".")
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if in_rank:
        os.read(sent, 1)
    else:
        for number in numbers:
            os.kill(os.getpid(), number)
    os._exit(int(min(stop.remaining(), 99)))


INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize("in_rank", [False, True])
@pytest.mark.parametrize(
    ("numbers", "terminal", "unlimited"),
    [
        ((INT,), True, True),
        ((INT,), False, False),
        ((TERM,), True, False),
        ((INT, TERM), True, False),
    ],
)
def test_ctrl_c_in_a_terminal_leaves_all_the_time_there_is(
    numbers: tuple[int, ...], terminal: bool, unlimited: bool, in_rank: bool
) -> None:
    process = get_context("forkserver").Process(
        target=time_left, args=(numbers,), kwargs={"terminal": terminal, "in_rank": in_rank}
    )
    process.start()
    process.join(30)
    assert process.exitcode is not None
    assert process.exitcode == 99 if unlimited else 20 < process.exitcode < 30


def test_ctrl_c_under_torchrun_is_followed_by_sigkill() -> None:
    process = get_context("forkserver").Process(
        target=time_left,
        args=((INT,),),
        kwargs={"terminal": True, "in_rank": False, "torchrun": True},
    )
    process.start()
    process.join(30)
    assert process.exitcode is not None
    assert 20 < process.exitcode < 30


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
