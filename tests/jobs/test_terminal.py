"""A job in a terminal: a live line, Ctrl-C, a lost connection; plain lines elsewhere."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from bench.servers import wait_until
from tests.support.processes import Write, handles
from tests.support.stores import keys
from worker.store import open_store


def on_a_terminal(arguments: list[str], interrupted_at: str | None = None) -> tuple[int, str]:
    """Exit code and all output of a real `worker` process whose stderr is a terminal.

    Ctrl-C is pressed once it has written `interrupted_at`.
    """
    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "worker", *arguments], stderr=child)
    os.close(child)
    output = b""
    while select.select([parent], [], [], 120)[0]:
        try:
            output += os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        if interrupted_at and interrupted_at.encode() in output:
            process.send_signal(signal.SIGINT)
            interrupted_at = None
    return process.wait(), output.decode()


def test_a_terminal_shows_a_live_line(write: Write, job: dict[str, Any]) -> None:
    code, output = on_a_terminal(["train", write(job)])
    assert code == 0, output
    line = r"\r\x1b\[K[█░]{10} step \d+/10  epoch \d  loss [\d.]+  acc [\d.]+%  \d+ img/s  left \d:\d\d"
    assert re.search(line, output)
    lines = re.split(r"\r?\n", output.replace("\r\x1b[K", ""))
    assert any("validation accuracy" in line for line in lines)
    assert "done: 10 steps" in output


def test_ctrl_c_is_acknowledged(write: Write, job: dict[str, Any]) -> None:
    job["train"]["epochs"] = 200
    code, output = on_a_terminal(["train", write(job)], interrupted_at="epoch 1/200")
    assert code == 75, output
    assert output.index("Ctrl-C again exits at once") < output.index("stopped on request after")


def test_a_terminal_that_is_lost_stops_with_everything_committed(
    write: Write, job: dict[str, Any]
) -> None:
    """The live line has nowhere to go then, and neither has the log."""
    job["train"]["epochs"] = 200
    manifest = write(job)
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup` has ignored
        os.execv(sys.executable, [sys.executable, "-m", "worker", "train", manifest])
    store = open_store(job["output"])
    deadline = time.monotonic() + 120
    while not any(key.startswith("commits/") for key in keys(store)):
        assert time.monotonic() < deadline
        select.select([terminal], [], [], 0.1)
        os.read(terminal, 65536)
    os.close(terminal)  # the kernel sends SIGHUP
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    newest = max(key for key in keys(store) if key.startswith("commits/"))
    progress = json.loads(store.get("records/000001/progress.json"))
    assert progress["end"]["code"] == 75
    assert int(newest.split("/")[1].split("-")[0]) == progress["step"]


def test_plain_lines_elsewhere(write: Write, job: dict[str, Any]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "train", write(job)], stderr=subprocess.PIPE, text=True
    )
    _, text = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "\x1b" not in text
    line = next(line for line in text.splitlines() if "step 1/10" in line)
    for word in ("epoch 1", "loss", "acc", "img/s", "left", "lr 0.0001 to 0.001"):
        assert word in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_start_up_is_heeded(
    number: signal.Signals, write: Write, job: dict[str, Any]
) -> None:
    """Importing torch takes seconds; a scheduler may stop the job meanwhile."""
    code = "import sys, time; print('up', flush=True); from worker.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", write(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.readline()
    # Of SIGTERM for SIGINT, too, for which Python has a handler from the start.
    wait_until(lambda: handles(process.pid, signal.SIGTERM), 60, lambda: "no handler")
    time.sleep(0.2)  # into the imports
    process.send_signal(number)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 75, text
    assert "Traceback" not in text
