"""A complete job on one machine: the worker's own commands in turn, on an embedded S3 server."""

import contextlib
import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import click
import numpy as np
from moto.server import ThreadedMotoServer
from PIL import Image
from sklearn.datasets import load_digits

from worker.errors import ExitCode, InfrastructureError
from worker.logs import end_live

_BUCKET = "demo"
_PIXELS = 64
_TARGET_PER_CLASS = 24
_VALIDATION_SHARE = 0.25

_SOURCE = """\
version: 1
job: digits-source
output: s3://demo/runs/source/
data:
  train: s3://demo/datasets/source/train/
  val: s3://demo/datasets/source/val/
  image_size: 32
  augment: {crop_scale: [0.6, 1.0], flip: 0}
model: {backbone: resnet18}
optimizer: {name: adam, lr: 3e-4, weight_decay: 1e-5, groups: [{match: "*"}]}
train: {epochs: 4, batch_size: 32, seed: 0}
"""
_TARGET = """\
version: 1
job: digits-{name}
output: s3://demo/runs/{name}/
data:
  train: s3://demo/datasets/target/train/
  val: s3://demo/datasets/target/val/
  image_size: 32
  augment: {{crop_scale: [0.6, 1.0], flip: 0}}
model: {{backbone: resnet18, weights: s3://demo/runs/source/final/model.safetensors}}
optimizer:
  name: adam
  lr: 1e-3
  weight_decay: 1e-5
  groups:
{groups}
train: {{epochs: 12, batch_size: 24, seed: 0}}
record: {{samples: true}}
"""
_GRADED = """\
    - {match: head}
    - {match: layer4, scale: 0.5}
    - {match: layer3, scale: 0.3}
    - {match: "*", scale: 0.1}"""
_FROZEN = """\
    - {match: head}
    - {match: backbone, freeze: always}"""


def run_demo(keep: Path | None) -> None:
    """Run the demo; keep the pictures in the folder `keep`, or delete them if it is None.

    Raises `InfrastructureError` if a command ends with an unexpected exit code.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        s3 = stack.enter_context(_embedded_s3())
        _tell(
            "Handwritten digits: 0-4 are the source task, and 5-9, with 24 training pictures "
            "each, the target task"
        )
        _write_digits(folder)
        s3.create_bucket(Bucket=_BUCKET)
        _put_manifests(s3)
        for task in ("source", "target"):
            _worker(
                "pack", str(folder / task), f"s3://demo/datasets/{task}/", "--shard-size", "0.1"
            )
        _tell("The source task, from random weights")
        _worker("train", "s3://demo/jobs/source.yaml")
        _tell("The target task: fine-tune the source model, deeper blocks faster than early ones")
        click.echo(_TARGET.format(name="graded", groups=_GRADED))
        _worker("plan", "s3://demo/jobs/graded.yaml", "--ranks", "2")
        metrics = _stop_half_way("s3://demo/jobs/graded.yaml")
        _tell("The same command on one rank resumes where it stopped")
        _worker("train", "s3://demo/jobs/graded.yaml")
        _tell("The same with the backbone frozen, for comparison")
        _worker("train", "s3://demo/jobs/frozen.yaml")
        _tell("Which samples did the stopped and resumed run train on?")
        _worker("audit", "s3://demo/runs/graded/")
        _tell("The state of the run, and how it compares, read from the bucket alone")
        _worker("status", "s3://demo/runs/graded/")
        _worker("compare", "s3://demo/runs/graded/", "s3://demo/runs/frozen/")
        _worker("report", "s3://demo/runs/graded/", "--out", "demo-report.html")
        _show_bucket(s3)
        _tell("Some of the metrics that could be scraped during training")
        click.echo(metrics)
        _tell(
            f"Accuracy on the target task: graded {_accuracy(s3, 'graded'):.3f}, "
            f"frozen {_accuracy(s3, 'frozen'):.3f}; {time.monotonic() - began:.0f} s in all"
        )


@contextlib.contextmanager
def _embedded_s3() -> Iterator[Any]:
    """Start an S3 server on loopback, and point every command at it through the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # The user's own credentials and settings must not reach the demo's commands.
    for name in [name for name in os.environ if name.startswith(("AWS_", "WORKER_"))]:
        del os.environ[name]
    os.environ |= {
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_DEFAULT_REGION": "us-east-1",
        "WORKER_METRICS_PORT": str(_free_port()),
    }
    try:
        yield boto3.client("s3")
    finally:
        server.stop()


def _put_manifests(s3: Any) -> None:
    for name, text in (
        ("source", _SOURCE),
        ("graded", _TARGET.format(name="graded", groups=_GRADED)),
        ("frozen", _TARGET.format(name="frozen", groups=_FROZEN)),
    ):
        s3.put_object(Bucket=_BUCKET, Key=f"jobs/{name}.yaml", Body=text.encode())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _write_digits(folder: Path) -> None:
    """Write scikit-learn's 1797 handwritten digits as the image folders of two tasks."""
    digits = load_digits()
    seen: dict[int, int] = {}
    totals = np.bincount(digits.target)
    for picture, digit in zip(digits.images, digits.target.tolist(), strict=True):
        number = seen[digit] = seen.get(digit, -1) + 1
        task = "source" if digit < 5 else "target"
        # The first quarter of each digit's pictures is for validation; the target task then trains
        # on the next `_TARGET_PER_CLASS`.
        validation = number < totals[digit] * _VALIDATION_SHARE
        last = totals[digit] * _VALIDATION_SHARE + _TARGET_PER_CLASS
        if task == "target" and number >= last:
            continue
        place = folder / task / ("val" if validation else "train") / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        # Pixels range from 0 to 16; the factor stretches them to at most 254.
        pixels = Image.fromarray((picture * 15.9).astype(np.uint8))
        enlarged = pixels.resize((_PIXELS, _PIXELS), Image.Resampling.BICUBIC)
        enlarged.convert("RGB").save(place / f"{number:03d}.png")


def _tell(text: str) -> None:
    click.secho(f"\n== {text}", bold=True)


def _command(*arguments: str) -> list[str]:
    click.secho(f"$ worker {shlex.join(arguments)}", fg="cyan")
    sys.stdout.flush()
    return [sys.executable, "-m", "worker", *arguments]


def _worker(*arguments: str) -> None:
    _expect(subprocess.run(_command(*arguments)).returncode, ExitCode.DONE)


def _expect(code: int, wanted: ExitCode) -> None:
    if code != wanted:
        raise InfrastructureError(f"the command ended with exit code {code}; {wanted} was expected")


def _stop_half_way(manifest: str) -> str:
    """Train on two ranks, stop halfway with SIGTERM, and return a few lines of metrics."""
    process = subprocess.Popen(_command("train", "--nproc", "2", manifest))
    lines: list[str] = []
    try:
        while process.poll() is None and not _half_done(lines):
            time.sleep(0.1)
            lines = _scrape() or lines
        if sys.stderr.isatty():
            end_live()
        click.secho(f"$ kill -TERM {process.pid}", fg="cyan")
        process.terminate()
        code = process.wait()
    finally:
        process.kill()
    _expect(code, ExitCode.STOPPED)
    click.echo(f"exit code {code}: run again")
    wanted = ("step", "loss", "accuracy_ratio", "learning_rate", "images_per_second")
    return "\n".join(
        line for line in lines if line.startswith(tuple(f"worker_{name}{{" for name in wanted))
    )


def _scrape() -> list[str]:
    address = f"http://127.0.0.1:{os.environ['WORKER_METRICS_PORT']}/metrics"
    try:
        with urllib.request.urlopen(address) as response:
            text: str = response.read().decode()
    except OSError:
        return []
    return text.splitlines()


def _half_done(lines: list[str]) -> bool:
    values = {line.split("{")[0]: float(line.split()[-1]) for line in lines if "{" in line}
    steps = values.get("worker_steps", 0)
    return steps > 0 and values.get("worker_step", 0) > steps / 2


def _show_bucket(s3: Any) -> None:
    _tell("Contents of the bucket below runs/graded/")
    sizes: dict[str, list[int]] = {}
    for item in s3.list_objects_v2(Bucket=_BUCKET, Prefix="runs/graded/")["Contents"]:
        name = item["Key"].removeprefix("runs/graded/")
        folder, _, _ = name.rpartition("/")
        many = folder.endswith(("confusion", "history", "mistakes", "samples"))
        sizes.setdefault(f"{folder}/*" if many else name, []).append(item["Size"])
    for name, found in sizes.items():
        click.echo(f"{sum(found):>12,}  {name}" + (f" ({len(found)})" if len(found) > 1 else ""))


def _accuracy(s3: Any, name: str) -> float:
    done = json.loads(s3.get_object(Bucket=_BUCKET, Key=f"runs/{name}/done.json")["Body"].read())
    return float(done["accuracy"])
