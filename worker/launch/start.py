"""The path from a manifest to running ranks."""

import contextlib
import logging
import os
import resource
import socket
from collections.abc import Callable

import torch

from worker.checkpoint.publish import settle
from worker.checkpoint.saver_process import Saver
from worker.checkpoint.snapshot import room_for_training
from worker.environment import Settings
from worker.errors import WorkerError
from worker.job.job import Job, require_same_experiment
from worker.job.open_job import open_job
from worker.job.resume_preview import describe_done
from worker.launch.guard import exit_code
from worker.launch.launchers import detect
from worker.launch.requirements import check_place
from worker.launch.spawn import run_ranks
from worker.launch.topology import Spawn, require_divisible
from worker.logs import bind
from worker.manifest import Manifest
from worker.memory import configure_memory
from worker.metrics.exporters import announce, exported
from worker.metrics.registry import Metrics
from worker.metrics.run_labels import Owner
from worker.metrics.shared_outcome import SharedOutcome
from worker.model.pretrained_weights import load_pretrained
from worker.ranks.gpu_faults import count_gpus
from worker.ranks.process_group import device_of, process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.record.progress import Progress
from worker.store import open_store
from worker.store.traffic_counts import listen
from worker.train.context import RankContext
from worker.train.loaders import open_loaders
from worker.train.run_rank import run_rank

log = logging.getLogger(__name__)


def run_job(
    manifest: Manifest,
    nproc: int | None,
    stop: StopFlag,
    *,
    live: bool,
    until: int | None = None,
) -> int:
    """Train on all ranks of this node.

    Any mistake in the manifest is found before a rank starts and before anything is written. The
    outcome is exported to the systems that collect metrics.

    Args:
        manifest: The manifest of the job.
        nproc: The number of ranks on this node; None for one per GPU.
        stop: The flag that a stop signal sets.
        live: Whether to show a live progress line on the terminal.
        until: The number of epochs after which to stop, with exit code 75; None for all.

    Returns:
        The exit code.

    Raises:
        WorkerError: If the node or the environment does not fit the job.
    """
    gpus = settle_process()
    place = detect(os.environ, gpus, nproc)
    bind(job=manifest.job)
    # Created before any fork, so that it is shared with the ranks.
    outcome, own = SharedOutcome(), os.getpid()
    leads = place.leads

    def report_exit(code: int) -> None:
        # A forked rank leaves this to its parent, which outlives it.
        if leads and os.getpid() == own and (code or outcome.read()):
            with contextlib.suppress(WorkerError):  # an invalid output: already reported
                owner = Owner(manifest.job, open_store(manifest.output).uri)
                announce(owner, code, outcome, stop.patience)

    code = exit_code(
        lambda: _train(
            manifest,
            gpus,
            place,
            outcome=outcome,
            stop=stop,
            live=live,
            until=until,
            report_exit=report_exit,
        )
    )
    report_exit(code)
    return code


def _train(
    manifest: Manifest,
    gpus: int,
    place: Rank | Spawn,
    *,
    outcome: SharedOutcome,
    stop: StopFlag,
    live: bool,
    until: int | None,
    report_exit: Callable[[int], None],
) -> int:
    require_divisible(manifest.train.batch_size, place.world_size)
    Settings.from_env().require_valid()
    check_place(manifest, gpus)
    job = open_job(manifest)
    require_same_experiment(job)
    if job.done:
        if place.leads:
            # An attempt may have been interrupted while copying a result with more epochs over
            # this one.
            settle(job.output, job.done.epochs)
        log.info("%s", describe_done(job, job.done))
        if job.changes:
            changes = "; ".join(map(str, job.changes))
            log.warning("changed since then, without effect: %s", changes)
        return 0
    if not isinstance(place, Rank) or place.leads:  # rank 0 broadcasts the weights
        _load_weights(manifest, job)

    def run(rank: Rank, listener: socket.socket | None) -> None:
        _run_rank(
            job,
            rank,
            listener,
            outcome=outcome,
            stop=stop,
            live=live,
            until=until,
            report_exit=report_exit,
        )

    if isinstance(place, Rank):
        stop.has_begun = True
        return exit_code(lambda: run(place, None))
    return run_ranks(place, run, stop)


def settle_process() -> int:
    """Prepare this process for running ranks, and return the number of GPUs."""
    # Not torch.cuda.is_available(), which initializes CUDA and would break it in forked ranks.
    gpus = count_gpus()
    configure_memory(keep_freed=not gpus)
    # gloo may connect every rank to every other, which can exceed the usual 1,024 open files.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    # Forked ranks can use OpenMP only if their parent has not used it.
    torch.set_num_threads(1)
    return gpus


def _load_weights(manifest: Manifest, job: Job) -> None:
    """Load pretrained weights, unless the job will resume from a checkpoint and not need them."""
    weights = manifest.model.pretrained
    pulled = any(group.towards_start for group in job.groups)
    if weights and (pulled or not job.commits):
        count = load_pretrained(job.backbone, weights)
        log.info("%d tensors loaded from %s; the head is new", count, weights)


def _run_rank(
    job: Job,
    rank: Rank,
    listener: socket.socket | None,
    *,
    outcome: SharedOutcome,
    stop: StopFlag,
    live: bool,
    until: int | None,
    report_exit: Callable[[int], None],
) -> None:
    bind(rank=rank.rank)
    if rank.rank:
        logging.getLogger("worker").setLevel(logging.WARNING)
    progress = Progress(live=live and rank.leads)
    # The order matters:
    # 1. The saver and the loaders fork their processes, before CUDA is initialized or a thread is
    #    started.
    # 2. The process group initializes CUDA and starts threads.
    # 3. The exporters start threads and sockets that no forked process may inherit.
    # On the way out, everything is closed in reverse order.
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        saver = None
        if rank.leads:
            size = room_for_training(job.backbone.model, job.groups, job.manifest)
            saver = stack.enter_context(contextlib.closing(Saver(job.output, size)))
        loaders = stack.enter_context(contextlib.closing(open_loaders(job, rank, device_of(rank))))
        stack.enter_context(process_group(rank, listener, stop))
        metrics = Metrics(job.manifest.job, job.output.uri, rank.rank)
        listen(metrics)
        owner = Owner(job.manifest.job, job.output.uri)
        stack.enter_context(
            exported(
                metrics,
                owner,
                rank.rank,
                local_rank=rank.local_rank,
                outcome=outcome,
                patience=stop.patience,
            )
        )
        run_rank(
            RankContext(
                job=job,
                rank=rank,
                stop=stop,
                metrics=metrics,
                progress=progress,
                loaders=loaders,
                saver=saver,
                until=until,
                report_exit=report_exit,
            )
        )
