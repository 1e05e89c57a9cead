"""The time of commands from their start, next to `import torch, torchvision`.

python -m bench.start [--rounds 5]
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.photos import photos, write_tars

_WORKER = (sys.executable, "-m", "worker")


def main() -> None:
    """Print a line per command, medians over rounds in which they take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder / "tars", list(photos(256)))
        subprocess.run([*_WORKER, "index", folder / "tars"], check=True, capture_output=True)
        done = _manifest(folder, "done", {"epochs": 1})
        subprocess.run([*_WORKER, "train", done], check=True, capture_output=True)
        stopped = _manifest(folder, "stopped", {"epochs": 1000})
        _until_step([*_WORKER, "train", stopped], signal.SIGTERM)
        typo = _manifest(folder, "typo", {"epochs": 1, "batchsize": 3})
        commands: dict[str, Callable[[], float]] = {
            "import torch, torchvision": lambda: _whole(
                [sys.executable, "-c", "import torch, torchvision"]
            ),
            "worker --help": lambda: _whole([*_WORKER, "--help"]),
            "train, a typo in the manifest": lambda: _whole([*_WORKER, "train", typo]),
            "plan": lambda: _whole([*_WORKER, "plan", done]),
            "train, done already": lambda: _whole([*_WORKER, "train", done]),
            "train, to the first step": lambda: _first_step(folder),
            "train, resume to the first step": lambda: _until_step(
                [*_WORKER, "train", stopped], signal.SIGTERM
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                times[name].append(command())
    least = statistics.median(times["import torch, torchvision"])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"{name:<34}{median:6.2f} s {median - least:+6.2f} s")


def _whole(command: list[Any]) -> float:
    """Seconds until a command has ended."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    return time.perf_counter() - began


def _first_step(folder: Path) -> float:
    name = f"new-{time.monotonic_ns()}"
    return _until_step(
        [*_WORKER, "train", _manifest(folder, name, {"epochs": 1000})], signal.SIGKILL
    )


def _until_step(command: list[Any], then: signal.Signals) -> float:
    """Seconds until a command tells of a step; it is sent a signal then, and waited for."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    taken = 0.0
    for line in process.stderr or ():
        if "step" in line and "/" in line and not taken and "img/s" in line:
            taken = time.perf_counter() - began
            process.send_signal(then)
    process.wait()
    return taken


def _manifest(folder: Path, job: str, train: dict[str, Any]) -> Path:
    body = {
        "version": 1,
        "job": job,
        "output": f"{folder}/{job}/",
        "data": {"train": f"{folder}/tars/", "image_size": 64},
        "model": {"backbone": "resnet18"},
        "optimizer": {"name": "adam", "lr": 1e-3, "groups": [{"match": "*"}]},
        "train": {"batch_size": 16, **train},
    }
    path = folder / f"{job}.yaml"
    path.write_text(json.dumps(body))
    return path


if __name__ == "__main__":
    main()
