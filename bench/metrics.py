"""The cost of metrics and history in a training loop of about 100 steps per second.

Blocks of steps with and without them take turns, so that a noisy machine disturbs both alike. They
are served, scraped, written to a file and kept in a history meanwhile, far more often than usual.
"""

import contextlib
import math
import os
import socket
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator

import torch
from torch import nn

from worker.metrics import exporters as export
from worker.metrics.exporters import exported
from worker.metrics.registry import Metrics
from worker.metrics.run_labels import Owner
from worker.metrics.shared_outcome import SharedOutcome
from worker.record import journal as journals
from worker.record.journal import Journal
from worker.record.progress import Progress, StepProgress
from worker.record.telemetry import StepReport, Telemetry
from worker.store import open_store

BLOCKS, STEPS = 60, 50
REPORT_EVERY = 5
GROUPS = ("features.1", "features.2+features.3", "head", "*")
BAR = 0.01


class Work:
    """A step of some 10 ms on one core."""

    def __init__(self) -> None:
        self._matrix = torch.randn(256, 256)
        began = time.perf_counter()
        for _ in range(100):
            self._matrix @ self._matrix
        self._times = max(1, round(10e-3 / ((time.perf_counter() - began) / 100)))

    def step(self) -> None:
        for _ in range(self._times):
            self._matrix @ self._matrix


def told(step: int) -> StepProgress:
    rates, norms = dict.fromkeys(GROUPS, 1e-3), dict.fromkeys(GROUPS, 1.0)
    return StepProgress(
        step=step,
        total_steps=BLOCKS * STEPS,
        epoch=1,
        loss=0.5,
        accuracy=0.5,
        images_per_second=1e3,
        wait_ratio=0.1,
        remaining_seconds=60.0,
        checkpoint_seconds=60.0,
        rates=rates,
        gradient_norms=norms,
    )


@contextlib.contextmanager
def scraped(port: int) -> Iterator[None]:
    """Somebody who asks for the metrics ten times as often as Prometheus does."""
    done = threading.Event()

    def ask() -> None:
        while not done.wait(1.5):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read()

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    done.set()
    thread.join()


def measure(folder: str) -> tuple[list[float], list[float]]:
    """Seconds of each block: without, and with metrics."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ["WORKER_METRICS_PORT"] = str(port)
    os.environ["WORKER_METRICS_TEXTFILE"] = folder
    export._INTERVAL_SECONDS = journals.PROGRESS_SECONDS = 1.5
    journals._FLUSH_SECONDS = 3.0
    metrics, owner = Metrics("bench", "s3://bucket/run/", 0), Owner("bench", "s3://bucket/run/")
    journal = Journal(open_store(f"{folder}/run"), 1, leads=True)
    journal.begin(0, BLOCKS * STEPS, 1)
    telemetry = Telemetry(
        metrics, journal, Progress(live=False), total_steps=BLOCKS * STEPS, ranks=1
    )
    work, bare, full = Work(), [], []
    phases = dict.fromkeys(("wait", "host_to_device", "forward_backward", "optimizer"), 1e-3)
    with (
        exported(
            metrics, owner, 0, local_rank=0, outcome=SharedOutcome(), patience=lambda: math.inf
        ),
        scraped(port),
    ):
        for block in range(BLOCKS):
            began = time.perf_counter()
            for _ in range(STEPS):
                work.step()
            bare.append(time.perf_counter() - began)
            began = time.perf_counter()
            for at in range(STEPS):
                work.step()
                step = block * STEPS + at + 1
                telemetry.step(step, epochs=step / 100, size=64, seconds=0.01, phases=phases)
                if step % REPORT_EVERY == 0:
                    telemetry.report(
                        StepReport(
                            step=told(step),
                            images=64 * REPORT_EVERY,
                            counted=64.0 * REPORT_EVERY,
                            seconds=0.05,
                        )
                    )
            full.append(time.perf_counter() - began)
    journal.close(None, 5)
    return bare, full


def measure_calls() -> float:
    """Seconds per step that the calls alone take, in the training thread."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(open_store(folder), 1, leads=True)
        journal.begin(0, 5000, 1)
        metrics = Metrics("bench", "s3://bucket/run/", 0)
        telemetry = Telemetry(metrics, journal, Progress(live=False), total_steps=5000, ranks=1)
        phases = dict.fromkeys(("wait", "host_to_device", "forward_backward", "optimizer"), 1e-3)
        began = time.perf_counter()
        for step in range(1, 5001):
            telemetry.step(step, epochs=step / 100, size=64, seconds=0.01, phases=phases)
            if step % REPORT_EVERY == 0:
                telemetry.report(
                    StepReport(
                        step=told(step),
                        images=64 * REPORT_EVERY,
                        counted=64.0 * REPORT_EVERY,
                        seconds=0.05,
                    )
                )
        seconds = time.perf_counter() - began
        journal.close(None, 5)
    return seconds / 5000


def measure_norms() -> tuple[float, float]:
    """Seconds for the norm of a whole gradient of 211 tensors, and for that of four groups."""
    gradients = [torch.randn(4_000_000 // 211) for _ in range(211)]
    parts = [gradients[:8], gradients[8:60], gradients[60:62], gradients[62:]]
    whole, split = [], []
    for _ in range(100):
        began = time.perf_counter()
        nn.utils.get_total_norm(gradients).item()
        whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        norms = torch.stack([nn.utils.get_total_norm(part) for part in parts])
        torch.linalg.vector_norm(norms).item()
        norms.tolist()
        split.append(time.perf_counter() - began)
    return statistics.median(whole), statistics.median(split)


def main() -> None:
    torch.set_num_threads(1)
    calls = measure_calls()
    print(f"calls: {1e6 * calls:.0f} us a step, {calls / 10e-3:.2%} of 10 ms (bar {BAR:.0%})")
    with tempfile.TemporaryDirectory() as folder:
        bare, full = measure(folder)
    ratios = [with_it / without for without, with_it in zip(bare, full, strict=True)]
    step = statistics.median(bare) / STEPS
    print(
        f"all of it: a step of {1e3 * step:.1f} ms takes {statistics.median(ratios):.4f} times as "
        f"long with metrics, history, a port, a file and a scraper (bar {1 + BAR:.2f})"
    )
    whole, split = measure_norms()
    print(f"norms: {1e6 * whole:.0f} us for the whole gradient, {1e6 * split:.0f} us by group")


if __name__ == "__main__":
    main()
