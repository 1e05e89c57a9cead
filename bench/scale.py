"""Requests of 8 to 4,096 ranks to the store, by the real planner and the real protocol.

python -m bench.scale

The data set is as large as ImageNet-1k, 1,281,167 images of 110 kB in 1,282 shards, and only the
index exists; the model is a ResNet-50 with AdamW; batches are of 32 images per rank. Requests
are those that an S3 server on loopback is asked.
"""

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boto3
import numpy as np
import torch
import torch.distributed as dist
from moto.server import ThreadedMotoServer

from bench.checkpoint import set_environment
from bench.learners import CPU
from worker.checkpoint.claim import claim_attempt
from worker.checkpoint.cleanup import clean
from worker.checkpoint.commit import (
    CommitName,
    list_commits,
    publish_commit,
    read_commit,
    write_parts,
)
from worker.checkpoint.host_copy import HostCopy
from worker.checkpoint.publish import settle
from worker.checkpoint.snapshot import room_for_training, take_snapshot
from worker.data.epoch_plan import EpochPlan
from worker.data.index import Index, Shard
from worker.data.read_cache import Cache
from worker.data.reader import SampleReader
from worker.job.job import Job, require_own_output
from worker.job.open_job import open_job
from worker.layout import INDEX_NAME
from worker.manifest import Manifest, parse_manifest
from worker.model.learner import Learner, build_learner
from worker.record.sample_ledger import ranks_that_write
from worker.store import Store, open_store
from worker.store.traffic_counts import listen

_RANKS = (8, 64, 512, 4096)
_PER_RANK, _PER_NODE = 32, 8
_SAMPLES, _SHARDS, _BYTES = 1_281_167, 1_282, 110_000
_LOOKED_AT = 8  # ranks whose part is counted
_STEPS = 100  # of one rank's reads; those of an epoch follow


@dataclass
class Counter:
    """Requests and bytes since it was made."""

    requests: int = 0
    bytes: int = 0

    def request(self, operation: str, seconds: float, size: int) -> None:
        self.requests += 1
        self.bytes += size

    def retry(self, operation: str) -> None: ...

    def failure(self, operation: str) -> None: ...


def main() -> None:
    """Print a table for reads and one for the state."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    set_environment(f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    bucket = "s3://bench"
    boto3.client("s3").create_bucket(Bucket="bench")
    store = open_store(f"{bucket}/data/")
    store.put(INDEX_NAME, _index().model_dump_json().encode())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    print("start and reads, per rank")
    print(
        f"{'ranks':>6} {'opening the job':>36} {'plan':>9} {'first batch':>22}"
        f" {'shards':>7} {'reads per epoch':>16}"
    )
    for ranks in _RANKS:
        print(_reads(ranks, bucket), flush=True)
    print("\nstate, all ranks together")
    for name, count in _state(_manifest(8, bucket)).items():
        requests, size, seconds = count
        print(f"{name:<36} {requests:3} requests {size / 1e6:8.1f} MB {seconds:6.2f} s")
    for ranks in _RANKS:
        pieces = len(ranks_that_write(ranks))
        size = _PER_RANK * min(_PER_NODE, ranks) * 16
        print(
            f"{f'ledger at {ranks} ranks, per commit':<36} {pieces:3} requests of {size} B a step"
        )


def _index() -> Index:
    each = -(-_SAMPLES // _SHARDS)
    counts = [min(each, _SAMPLES - number * each) for number in range(_SHARDS)]
    shards = tuple(
        Shard(
            name=f"train-{number:06d}.tar",
            bytes=count * _BYTES,
            samples=count,
            sha256=f"{number:064x}",
            sidecar_digest=f"{number:016x}",
        )
        for number, count in enumerate(counts)
    )
    return Index(classes=tuple(f"n{number:08d}" for number in range(1000)), shards=shards)


def _manifest(ranks: int, bucket: str) -> Manifest:
    body = {
        "version": 1,
        "job": "scale",
        "output": f"{bucket}/runs/{ranks}/",
        "data": {"train": f"{bucket}/data/"},
        "model": {"backbone": "resnet50"},
        "optimizer": {"name": "adamw", "lr": 1e-3, "groups": [{"match": "*"}]},
        "train": {"epochs": 90, "batch_size": ranks * _PER_RANK},
    }
    return parse_manifest(json.dumps(body), "bench.scale")


def _counted(call: Callable[[], Any]) -> tuple[Any, tuple[int, int, float]]:
    """Return what a call returns, and its requests, bytes and seconds."""
    counter = Counter()
    listen(counter)
    began = time.perf_counter()
    result = call()
    return result, (counter.requests, counter.bytes, time.perf_counter() - began)


def _reads(ranks: int, bucket: str) -> str:
    """A line of the first table."""
    manifest = _manifest(ranks, bucket)
    job: Job
    job, (requests, size, seconds) = _counted(lambda: open_job(manifest))
    began = time.perf_counter()
    plan = job.plan(0)
    plan.batch(0, ranks // 2, ranks)
    planned = time.perf_counter() - began
    lanes = -(-job.lanes // ranks)
    reader = SampleReader(
        job.train.store, job.train.index, cache=Cache(512 << 20), scratch=None, lanes=lanes
    )
    looked_at = np.linspace(0, ranks - 1, _LOOKED_AT).astype(int).tolist()
    first = [_runs(plan, reader, rank, ranks, 1) for rank in looked_at]
    steps = min(_STEPS, plan.steps)
    many = [_runs(plan, reader, rank, ranks, steps) for rank in looked_at]
    shards = max(plan.shards(rank, ranks) for rank in looked_at)
    run_bytes = reader.run_bytes
    return (
        f"{ranks:6} {requests:4} requests {size / 1e6:6.2f} MB {seconds:7.2f} s"
        f" {planned * 1e3:6.1f} ms"
        f" {max(first):4} reads {max(first) * run_bytes / 1e6:7.1f} MB {shards:7}"
        f" {max(many) * plan.steps / steps:10.0f} reads"
    )


def _runs(plan: EpochPlan, reader: SampleReader, rank: int, ranks: int, steps: int) -> int:
    """Return how many ranged reads the first steps of a rank take."""
    ids = np.concatenate([plan.batch(step, rank, ranks) for step in range(steps)])
    return len(np.unique(reader.runs(ids)))


def _state(manifest: Manifest) -> dict[str, tuple[int, int, float]]:
    """Requests, bytes and seconds of claiming, committing and resuming; all of them rank 0's."""
    job = open_job(manifest)
    learner = build_learner(job.backbone.model, job.groups, manifest, CPU)
    for parameter in learner.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    found = {}
    attempt, found["claim an attempt"] = _counted(lambda: _claim(job))
    host = HostCopy(room_for_training(learner.model, learner.groups, manifest))
    trusted: list[CommitName] = []
    for step in (100, 200, 300):  # from the third on, one is deleted
        name = CommitName(step, attempt)
        save = _saving(job.output, learner, host, name, trusted)
        _, found["commit, and delete an older one"] = _counted(save)
    _, found["resume: read by rank 0"] = _counted(lambda: _resume(job.output))
    return found


def _claim(job: Job) -> int:
    manifest = job.manifest.model_dump(mode="json")
    require_own = functools.partial(require_own_output, job)
    return claim_attempt(job.output, job.identity, manifest, require_own)


def _saving(
    output: Store, learner: Learner, host: HostCopy, name: CommitName, trusted: list[CommitName]
) -> Callable[[], None]:
    def save() -> None:
        parts = take_snapshot(learner, host, {"step": name.step}).parts(host)
        publish_commit(output, name, write_parts(output, name, parts))
        trusted.append(name)
        clean(output, name, trusted=trusted, keep=2, kept_steps=())

    return save


def _resume(output: Store) -> None:
    commits = list_commits(output)
    settle(output, 1)
    if not read_commit(output, commits[0]):
        raise RuntimeError("the commit cannot be read")


if __name__ == "__main__":
    main()
