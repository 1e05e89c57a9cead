"""The rows of `worker check`, in the order in which a start would need each item."""

import functools
import os

import torch

from worker.check.place import (
    probe_devices,
    probe_metrics,
    probe_processors,
    probe_rendezvous,
    probe_scratch,
    probe_shared_memory,
)
from worker.check.storage import look_at_output
from worker.check.table import NO_STORAGE, Table
from worker.data.epoch_plan import default_lanes
from worker.job.job import require_same_experiment
from worker.job.open_data import open_dataset
from worker.job.open_job import open_job
from worker.launch.launchers import detect
from worker.launch.requirements import check_place
from worker.launch.topology import Spawn, require_divisible
from worker.logs import count
from worker.manifest import Manifest
from worker.model.pretrained_weights import load_pretrained
from worker.ranks.rank import Rank
from worker.store import open_store


def look_at_place(
    table: Table, manifest: Manifest | None, ranks: int | None, nproc: int | None
) -> None:
    """Add rows for everything that a start of the job needs besides its manifest.

    Write objects only below `check/` in the output, and remove them afterwards.

    Args:
        table: The table to which the rows are added.
        manifest: The job's manifest; None if it cannot be read because storage is unusable.
        ranks: The number of ranks if they will start elsewhere, as when the check runs in a batch
            script or in a pod without GPUs; None if they start here.
        nproc: The number of ranks requested for this node; None for the default.
    """
    _Preflight(table, manifest, ranks, nproc).look()


class _Preflight:
    """A preflight in progress, with the findings on which later probes build."""

    def __init__(
        self, table: Table, manifest: Manifest | None, ranks: int | None, nproc: int | None
    ) -> None:
        self.table = table
        self._manifest, self._ranks, self._nproc = manifest, ranks, nproc
        self._gpus = torch.cuda.device_count()
        self._place: Rank | Spawn | None = None

    def look(self) -> None:
        """Add all rows."""
        table, manifest = self.table, self._manifest
        table.look("devices", self._devices)
        table.look("ranks", self._topology)
        table.look("processors", self._processors)
        table.look("rendezvous", lambda: probe_rendezvous(self._place))
        table.look("scratch", probe_scratch)
        table.look("shared memory", probe_shared_memory)
        table.look("metrics", probe_metrics)
        if manifest:
            _look_at_storage(table, manifest)
        else:
            table.skip("data, model, output", "the manifest cannot be read")

    def _devices(self) -> str:
        found = probe_devices()
        if self._manifest and self._ranks is None:
            check_place(self._manifest, self._gpus)
        return found

    def _processors(self) -> str:
        if not self._manifest:
            return probe_processors(None, 1)
        lanes = self._manifest.data.shuffle.lanes
        return probe_processors(
            self._place, lanes or default_lanes(self._manifest.train.batch_size)
        )

    def _topology(self) -> str:
        if self._ranks is None:
            self._place = detect(os.environ, self._gpus, self._nproc)
        size = self._place.world_size if self._place else self._ranks or 1
        if not self._manifest:
            return f"{size} in all"
        batch = self._manifest.train.batch_size
        require_divisible(batch, size)
        return f"{size} in all, {batch // size} images of each batch per rank"


def _look_at_storage(table: Table, manifest: Manifest) -> None:
    whole = not table.storage_fails
    data = manifest.data
    for field, uri in (
        ("data.train", data.train),
        ("data.val", data.val),
        ("data.test", data.test),
    ):
        if uri and table.storage_fails and "://" in uri:
            table.skip(field, NO_STORAGE)
        elif uri:
            whole &= table.look(field, functools.partial(_probe_data, field, uri))
    if table.look("output", lambda: open_store(manifest.output).uri):
        look_at_output(table, open_store(manifest.output))
    output = all(row.state != "FAIL" for row in table.rows if row.name.startswith("output"))
    if whole and output and not table.storage_fails:
        table.look("model", lambda: _probe_model(manifest))
    else:
        table.skip("model", f"the {'output' if whole else 'data'} cannot be used")


def _probe_data(field: str, uri: str) -> str:
    index = open_dataset(field, uri).index
    shards = count(len(index.shards), "shard")
    return f"{index.samples:,} samples of {len(index.classes)} classes in {shards}"


def _probe_model(manifest: Manifest) -> str:
    job = open_job(manifest)
    weights = "random weights"
    if manifest.model.pretrained:
        weights = f"{load_pretrained(job.backbone, manifest.model.pretrained)} pretrained tensors"
    require_same_experiment(job)
    head = ", ".join(job.backbone.heads)
    groups = ", ".join(group.name for group in job.groups)
    return f"{manifest.model.backbone}, head {head}, {weights}, groups {groups}"
