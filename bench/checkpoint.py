"""Saving beside training: ResNet-50 with AdamW, about 300 MB, next to its peers.

python -m bench.checkpoint [--server moto|minio] [--saves 5]

Per contender: how long the training is blocked, until when the checkpoint is durable, and how long
steps take meanwhile. All of them save the same state to the same server, in turns.
"""

import argparse
import contextlib
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import async_save

from bench.learners import batch_of, engine_of, learner_of, manifest_of
from bench.server import serve_sink
from bench.servers import free_port, start_minio, wait_for
from worker.checkpoint.background_thread import Background
from worker.checkpoint.claim import claim_attempt
from worker.checkpoint.commit import CommitName, publish_commit
from worker.checkpoint.saver_process import Saver
from worker.checkpoint.snapshot import take_snapshot
from worker.memory import configure_memory
from worker.model.backbone import build_backbone
from worker.model.learner import Learner
from worker.store import Store, open_store

BUCKET = "bench"
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
IMAGES, SIDE = 16, 64
_ROOM = 1 << 29  # more than the training state takes up

Save = Callable[[int], Future[Any] | None]
"""Saves as step N; gives what is done once the checkpoint is durable, None where it is by then."""


@dataclass
class Times:
    """Seconds: of blocked training, until durable, of steps during an upload and beside none."""

    blocked: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


def ours(store: Store, saver: Saver, learner: Learner) -> Save:
    """The calls of `train/durable_state.py`."""
    attempt, background = claim_attempt(store, {"job": "bench"}, {}, lambda: None), Background()
    background.submit(lambda: saver.host.prepare(torch.device("cpu"))).result()

    def save(step: int) -> Future[Any]:
        snapshot = take_snapshot(learner, saver.host, {"step": step})
        name = CommitName(step, attempt)
        return background.submit(lambda: publish_commit(store, name, saver.write(name, snapshot)))

    return save


def state_of(learner: Learner) -> dict[str, Any]:
    return {"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()}


def synchronous(learner: Learner) -> Save:
    client = boto3.client("s3")

    def save(step: int) -> None:
        with tempfile.NamedTemporaryFile() as file:
            torch.save(state_of(learner), file.name)
            client.upload_file(file.name, BUCKET, f"sync/{step}.pt")

    return save


def dcp_local(learner: Learner) -> Save:
    folder = tempfile.mkdtemp()

    def save(step: int) -> Any:
        shutil.rmtree(folder, ignore_errors=True)
        return async_save(state_of(learner), checkpoint_id=f"{folder}/{step}")

    return save


def connector(learner: Learner) -> Save:
    """Its writer has no setting for an endpoint, so its client is replaced by one that has."""
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client
    from s3torchconnector.dcp import S3StorageWriter

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    config = S3ClientConfig(force_path_style=True)

    def save(step: int) -> Any:
        writer = S3StorageWriter("us-east-1", f"s3://{BUCKET}/connector/{step}/")
        writer.fs._client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
        return async_save(state_of(learner), storage_writer=writer)

    return save


CONTENDERS: dict[str, Callable[[Learner], Save]] = {
    "torch.save + upload": synchronous,
    "dcp.async_save (disk)": dcp_local,
    "s3torchconnector async": connector,
}


def main() -> None:
    """Run all contenders and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", choices=["moto", "minio", "sink"], default="moto")
    parser.add_argument("--saves", type=int, default=5)
    options = parser.parse_args()
    configure_memory(keep_freed=True)
    with tempfile.TemporaryDirectory() as folder, serve(options.server, Path(folder)):
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        store = open_store(f"s3://{BUCKET}/ours")
        saver = Saver(store, _ROOM)
        rendezvous = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=rendezvous, rank=0, world_size=1)
        # The connector asks for more than a sink knows.
        peers = {} if options.server == "sink" else CONTENDERS
        contenders: dict[str, Callable[[Learner], Save]] = {
            "worker": functools.partial(ours, store, saver),
            **peers,
        }
        times = measure(contenders, options.saves)
        dist.destroy_process_group()
    describe(times)
    sys.stdout.flush()
    os._exit(0)  # peers leave threads behind


def measure(made: dict[str, Callable[[Learner], Save]], saves: int) -> dict[str, Times]:
    """Save with each of the contenders in turn, the first round uncounted."""
    backbone = build_backbone("resnet50", 1000, 0, SIDE)
    manifest = manifest_of([{"match": "*"}], name="adamw")
    learner = learner_of(backbone, manifest)
    engine = engine_of(backbone, learner, manifest)
    batch = batch_of(IMAGES, SIDE, 1000)
    number = 0

    def step() -> float:
        nonlocal number
        began = time.perf_counter()
        engine.step(number, batch, IMAGES)
        number += 1
        return time.perf_counter() - began

    for _ in range(3):
        step()
    contenders = {name: make(learner) for name, make in made.items()}
    times = {name: Times() for name in contenders}
    for turn in range(saves + 1):
        for name, save in contenders.items():
            found = Times()
            found.alone += [step() for _ in range(4)]
            began = time.perf_counter()
            future = save(number)
            found.blocked.append(time.perf_counter() - began)
            while future and not future.done():
                found.during.append(step())
            if future:
                future.result()
            found.durable.append(time.perf_counter() - began)
            if turn:
                for kind, values in vars(found).items():
                    getattr(times[name], kind).extend(values)
    return times


def describe(times: dict[str, Times]) -> None:
    """Return a line per contender, with the worker's ratio to it."""
    alone = statistics.median(x for found in times.values() for x in found.alone)
    print(f"a step alone takes {alone * 1e3:.0f} ms")
    print(f"{'':<24}{'blocked':>9}{'range':>13}{'durable':>9}{'steps meanwhile':>17}")
    for name, found in times.items():
        low, high = (f(found.blocked) * 1e3 for f in (min, max))
        blocked, durable = (statistics.median(x) * 1e3 for x in (found.blocked, found.durable))
        slower = "-"
        if found.during:
            slower = f"{statistics.median(found.during) / statistics.median(found.alone):.2f}x"
        print(f"{name:<24}{blocked:6.0f} ms{low:8.0f}-{high:<4.0f}{durable:6.0f} ms{slower:>16}")
    own = statistics.median(times["worker"].blocked)
    for name in list(times)[1:]:
        ratio = statistics.median(times[name].blocked) / own
        print(f"worker blocks 1/{ratio:.1f} of {name}")


def set_environment(endpoint: str) -> None:
    """Have this process use an S3 server that takes any credentials."""
    os.environ |= {**_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}


@contextlib.contextmanager
def serve(server: str, folder: Path) -> Iterator[None]:
    """An S3 server in a process of its own, and the environment that leads there."""
    if server == "sink":
        with serve_sink(folder) as endpoint:
            set_environment(endpoint)
            yield
        return
    if server == "minio":
        with start_minio(folder) as minio:
            os.environ |= minio.environment | {"AWS_DEFAULT_REGION": "us-east-1"}
            yield
        return
    port = free_port()
    process = subprocess.Popen(
        # It stands for another machine, whose cores are none of the training's.
        ["/usr/bin/nice", "-n", "10", sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        set_environment(f"http://127.0.0.1:{port}")
        wait_for(f"http://127.0.0.1:{port}", folder / "log")
        yield
    finally:
        process.kill()


if __name__ == "__main__":
    main()
