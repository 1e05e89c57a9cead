"""`worker` commands in processes that start from one preloaded server."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

Job = dict[str, Any]
"""The data of a manifest."""
Write = Callable[[Job], str]
"""Writes a manifest to disk and returns its path."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "worker.cli",
        "worker.launch.start",
        "worker.record.ledger_audit",
        "tests.support.warm",
        "pytest",
        "tests.conftest",
    ]
)


@dataclass
class Ended:
    """How a `worker` command ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON log lines."""
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]


Sabotage = Callable[[], None] | None
"""Called in the process before its command, to have something fail in it; must be picklable."""


class Running:
    """A `worker` command in a process of its own."""

    def __init__(self, arguments: tuple[str, ...], folder: Path, sabotage: Sabotage) -> None:
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        self._process: ForkServerProcess = _CONTEXT.Process(
            target=_run_command,
            args=(arguments, dict(os.environ), str(self._out), str(self._err), sabotage),
        )
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it still runs."""
        if self._process.is_alive():
            os.kill(self.pid, number)

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Wait until the log holds `text`."""
        deadline = time.monotonic() + seconds
        while text not in self._read(self._err):
            assert self._process.is_alive(), f"ended without {text!r}: {self._read(self._err)}"
            assert time.monotonic() < deadline, f"no {text!r} in {self._read(self._err)}"
            time.sleep(0.02)

    def wait_until_it_handles(self, number: signal.Signals, seconds: float = 60) -> None:
        """Wait until the process has a handler for a signal; before that, Python only starts."""
        deadline = time.monotonic() + seconds
        while not handles(self.pid, number):
            assert self._process.is_alive(), f"ended without a handler: {self._read(self._err)}"
            assert time.monotonic() < deadline, f"no handler of {number.name}"
            time.sleep(0.005)

    def wait(self, seconds: float = 300) -> Ended:
        """Wait for the end."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            pytest.fail(f"still running after {seconds} s: {self._read(self._err)}")
        return Ended(self._process.exitcode, self._read(self._out), self._read(self._err))

    @staticmethod
    def _read(path: Path) -> str:
        return path.read_text() if path.exists() else ""


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, from proc(5): a bit each, the lowest for 1."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) & 1 << number - 1)
    return False


def in_fresh_process(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a process that may fork ranks, as pytest's own may not once it used torch."""
    # The server that forks it has the environment of the test that was the first to need it.
    process = _CONTEXT.Process(target=_in_environment, args=(dict(os.environ), function, arguments))
    process.start()
    process.join(300)
    process.kill()
    assert process.exitcode == 0


def _in_environment(
    env: dict[str, str], function: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    os.environ.clear()
    os.environ |= env
    function(*arguments)


Start = Callable[..., Running]

Run = Callable[..., Ended]


def _run_command(
    arguments: tuple[str, ...], env: dict[str, str], out: str, err: str, sabotage: Sabotage
) -> None:
    """Become `worker ARGUMENTS` with its own environment and output files."""
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ |= env
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup` has ignored, if tests run under it
    from worker.cli import main

    if sabotage:
        sabotage()
    main(["--log-format", "json", *arguments], prog_name="worker")


_WATCHING = """\
import os, sys
leave = os._exit
os._exit = lambda code: (print('torch' in sys.modules, flush=True), leave(code))
from worker.cli import main
main(sys.argv[1:])"""


def run_watching_imports(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `worker` in an interpreter of its own; the last line tells whether it imported torch."""
    command = [sys.executable, "-c", _WATCHING, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
