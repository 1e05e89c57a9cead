"""The rows of `worker check`, in the order in which a start would meet what they look at."""

import os
import sys
from urllib.parse import urlsplit

import torch

from worker.check.place import (
    probe_devices,
    probe_metrics,
    probe_rendezvous,
    probe_scratch,
    probe_shared_memory,
)
from worker.check.storage import look_at_output, probe_credentials
from worker.check.table import Table
from worker.launch.start import check_place
from worker.launch.topology import Spawn, detect, require_divisible
from worker.logs import count
from worker.manifest import Manifest, load_manifest
from worker.model.weights import load_pretrained
from worker.store import Store, open_store
from worker.train.job import open_dataset, open_job, require_same_experiment
from worker.train.rank import Rank

_PATIENCE_SECONDS = "10"


def check(manifest_uri: str, ranks: int | None, nproc: int | None) -> Table:
    """Look at all that a start of the job would need.

    `ranks` is given where the ranks are not to start in this process: a batch script, a pod
    without the GPUs. Writes nothing but objects below `check/` in the output, and removes those.
    """
    if sys.stdout.isatty():  # a person is waiting; a job would rather sit out an outage
        os.environ.setdefault("WORKER_STORE_DEADLINE_SECONDS", _PATIENCE_SECONDS)
    table = Table()
    gpus = torch.cuda.device_count()
    loaded: list[Manifest] = []
    places: list[Rank | Spawn] = []

    def manifest() -> str:
        loaded.append(load_manifest(manifest_uri))
        return f"job {loaded[0].job}"

    def topology() -> str:
        if ranks is None:
            places.append(detect(os.environ, gpus, nproc))
        size = ranks or places[0].world_size
        if not loaded:
            return f"{size} in all"
        batch = loaded[0].train.batch_size
        require_divisible(batch, size)
        return f"{size} in all, {batch // size} images of each batch"

    remote = urlsplit(manifest_uri).scheme == "s3"
    if remote:
        table.look("credentials", probe_credentials)
    table.look("manifest", manifest)
    if loaded and not remote and "s3://" in loaded[0].model_dump_json():
        table.look("credentials", probe_credentials)
    table.look("devices", lambda: _devices(loaded, gpus if ranks is None else None))
    table.look("ranks", topology)
    table.look("rendezvous", lambda: probe_rendezvous(places[0] if places else None))
    table.look("scratch", probe_scratch)
    table.look("shared memory", probe_shared_memory)
    table.look("metrics", probe_metrics)
    if loaded:
        _look_at_storage(table, loaded[0])
    else:
        table.skip("data, model, output", "the manifest cannot be read")
    return table


def _devices(loaded: list[Manifest], gpus: int | None) -> str:
    found = probe_devices()
    if loaded and gpus is not None:
        check_place(loaded[0], gpus)
    return found


def _look_at_storage(table: Table, manifest: Manifest) -> None:
    def data(field: str, uri: str) -> str:
        index = open_dataset(field, uri).index
        shards = count(len(index.shards), "shard")
        return f"{index.samples:,} samples of {len(index.classes)} classes in {shards}"

    def model() -> str:
        job = open_job(manifest)
        tensors = 0
        if manifest.model.pretrained:
            tensors = load_pretrained(job.backbone, manifest.model.pretrained)
        require_same_experiment(job)
        head = ", ".join(job.backbone.heads)
        groups = ", ".join(group.name for group in job.groups)
        weights = f"{tensors} tensors of weights" if tensors else "random weights"
        return f"{manifest.model.backbone}, head {head}, {weights}, groups {groups}"

    fields = [("data.train", manifest.data.train), ("data.val", manifest.data.val)]
    whole = True
    for field, uri in fields:
        if uri and table.unreachable:
            table.skip(field, "storage does not answer")
        elif uri:
            whole &= table.look(field, lambda field=field, uri=uri: data(field, uri))  # type: ignore[misc]
    if whole and not table.unreachable:
        table.look("model", model)
    else:
        table.skip("model", "the data cannot be read")
    stores: list[Store] = []
    if table.look("output", lambda: _open(stores, manifest.output)):
        look_at_output(table, stores[0])


def _open(stores: list[Store], uri: str) -> str:
    stores.append(open_store(uri))
    return stores[0].uri
