"""The path from a manifest to a range test of its rates, or to a diagnosis of them."""

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

from worker.environment import Settings
from worker.errors import ConfigurationError, InfrastructureError, error_of
from worker.job.job import Job
from worker.job.open_job import open_job
from worker.launch.launchers import detect, without_peers
from worker.launch.requirements import check_place
from worker.launch.spawn import run_ranks
from worker.launch.start import settle_process
from worker.launch.topology import Spawn, one_node
from worker.learn.rate_diagnosis import Diagnosis
from worker.learn.rate_sweep import Sweep
from worker.manifest import Manifest
from worker.model.pretrained_weights import load_pretrained
from worker.ranks.process_group import device_of, meaningful_errors, process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.train.diagnose_rates import diagnose_rates
from worker.train.find_rates import sweep_rates
from worker.train.loaders import JobLoaders, open_loaders

_LOW, _HIGH = 1e-3, 1e2


def run_range_test(
    manifest: Manifest,
    steps: int,
    low: float | None,
    *,
    high: float | None,
    stop: StopFlag,
    advance: Callable[[int], None],
) -> tuple[Job, Sweep]:
    """Sweep the base rate on one rank.

    Args:
        manifest: The manifest of the job.
        steps: The number of steps.
        low: The lowest base rate; None for 1/1000 of the manifest's.
        high: The highest base rate; None for 100 times the manifest's.
        stop: The flag that a stop signal sets.
        advance: Called with 1 after each step.

    Returns:
        The job, and the loss at each rate.

    Raises:
        WorkerError: If the manifest is invalid, or the sweep fails or is stopped.
    """
    base = manifest.optimizer.lr
    low, high = low or base * _LOW, high or base * _HIGH
    if low >= high:
        raise ConfigurationError(f"--low: {low:g} is not below --high, {high:g}; set both")
    job = _open(manifest, settle_process())
    (rank,) = one_node(1).ranks()
    rank = replace(rank, master_port=0)  # the listener's, which the kernel chooses
    stop.has_begun = True
    listener = socket.create_server(("127.0.0.1", 0))
    with _loaders(job, rank, listener, stop) as loaders:
        return job, sweep_rates(
            job, rank, loaders, steps=steps, low=low, high=high, stop=stop, advance=advance
        )


def run_diagnosis(
    manifest: Manifest,
    batches: int,
    nproc: int | None,
    *,
    stop: StopFlag,
    advance: Callable[[int], None],
) -> tuple[Job, Diagnosis]:
    """Diagnose the rates of a job on all ranks of this node.

    Args:
        manifest: The manifest of the job.
        batches: The number of batches to compare.
        nproc: The number of ranks; None for one per GPU.
        stop: The flag that a stop signal sets.
        advance: Called with 1 for each batch, if there is one rank.

    Returns:
        The job and its diagnosis.

    Raises:
        WorkerError: If the manifest is invalid, or the diagnosis fails or is stopped.
    """
    gpus = settle_process()
    place = detect(without_peers(os.environ), gpus, nproc)
    if not isinstance(place, Spawn) or place.nodes > 1:
        raise ConfigurationError("find-rates --groups starts its ranks itself; run it once")
    job = _open(manifest, gpus)
    # Ranks are child processes unless there is only one, so rank 0 sends what it found.
    theirs, ours = multiprocessing.get_context("fork").Pipe(duplex=False)

    def run(rank: Rank, listener: socket.socket | None) -> None:
        with _loaders(job, rank, listener, stop) as loaders:
            found = diagnose_rates(job, rank, loaders, batches=batches, stop=stop, advance=advance)
        if rank.leads:
            ours.send(found)

    code = run_ranks(place, run, stop)
    if code:
        raise error_of(code)
    if not theirs.poll():
        raise InfrastructureError("the ranks ended without a result; run it again")
    return job, theirs.recv()


def _open(manifest: Manifest, gpus: int) -> Job:
    Settings.from_env().require_valid()
    check_place(manifest, gpus)
    job = open_job(manifest)
    if manifest.model.pretrained:
        load_pretrained(job.backbone, manifest.model.pretrained)
    return job


@contextlib.contextmanager
def _loaders(
    job: Job,
    rank: Rank,
    listener: socket.socket | None,
    stop: StopFlag,
) -> Iterator[JobLoaders]:
    # The loaders fork processes, so they come before the process group, which initializes CUDA.
    device = device_of(rank)
    with (
        contextlib.closing(open_loaders(job, rank, device)) as loaders,
        process_group(rank, listener, stop),
        meaningful_errors(),
    ):
        yield loaders
