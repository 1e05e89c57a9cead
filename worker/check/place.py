"""Probes of the machine or pod: devices, processors, rendezvous, disk, shared memory, metrics."""

import os
import shutil
import socket
import tempfile
import urllib.error
from pathlib import Path

import torch

from worker.check.table import Caution
from worker.environment import Settings
from worker.errors import ConfigurationError
from worker.job.decoding import decoding_of
from worker.launch.launchers import first_host
from worker.launch.topology import Spawn
from worker.logs import count
from worker.metrics.pushgateway import Gateway
from worker.ranks.cpu_cores import cores_of_node
from worker.ranks.gpu_faults import count_gpus, start_cuda
from worker.ranks.network_interface import interface_to, is_loopback
from worker.ranks.rank import Rank

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_NCCL_BYTES = 1 << 30  # containers get only 64 MiB of shared memory by default


def probe_devices() -> str:
    """Return the devices that ranks started here would run on."""
    gpus = count_gpus()
    if not gpus:
        return "no GPU here; ranks run on the CPU"
    start_cuda(torch.device("cuda", 0))
    return f"{gpus} x {torch.cuda.get_device_name(0)}"


def probe_processors(place: Rank | Spawn | None, lanes: int) -> str:
    """Describe the cores that affinity and cgroup leave to ranks here, and what will decode."""
    cores = cores_of_node()
    if place is None:
        return f"{count(cores, 'core')} here"
    rank = place if isinstance(place, Rank) else place.ranks()[0]
    each = " of each rank" if rank.local_world_size > 1 else ""
    return f"{count(cores, 'core')}; {decoding_of(rank, lanes)}{each} will decode"


def probe_rendezvous(place: Rank | Spawn | None) -> str:
    """Check that the name of rank 0's host resolves; `place` is None if ranks start elsewhere."""
    if place is None:
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        address = os.environ.get("MASTER_ADDR") or (first_host(nodes) if nodes else None)
    else:
        address = place.master_addr if place.world_size > 1 else None
    if address in (None, "localhost", "127.0.0.1"):
        return "on this machine"
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise ConfigurationError(
            f"{address} is not a valid host name; correct MASTER_ADDR"
        ) from None
    except OSError:
        seconds = Settings.from_env().rendezvous_seconds
        raise Caution(
            f"{address} does not resolve yet; ranks will keep trying for {seconds} s"
        ) from None
    numeric = str(found[0][4][0])
    return f"{address} is {numeric}{_by_interface(numeric)}"


def _by_interface(address: str) -> str:
    """Describe the interface on which Gloo and NCCL will listen for the other nodes."""
    chosen = os.environ.get("GLOO_SOCKET_IFNAME")
    if chosen:
        return f", GLOO_SOCKET_IFNAME is {chosen}"
    if is_loopback(address):
        return ", which is this node"
    interface = interface_to(address)
    return f", via interface {interface}" if interface else ", but there is no route to it"


def probe_scratch() -> str:
    """Check that the cache folder is writable and has as much free space as the cache may use."""
    settings = Settings.from_env()
    folder = settings.scratch
    if not folder:
        return "WORKER_SCRATCH is not set; every rank reads from the store"
    wanted = settings.scratch_gib
    place = Path(folder).absolute()
    try:
        # The cache creates its folder on first use, so probe the nearest ancestor that exists.
        existing = next(path for path in (place, *place.parents) if path.exists())
        with tempfile.NamedTemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free / (1 << 30)
    except OSError as error:
        raise Caution(
            f"WORKER_SCRATCH: {folder}: {error.strerror}; training would run without a cache"
        ) from None
    if free < wanted:
        raise Caution(
            f"WORKER_SCRATCH: {folder} has {free:.1f} GiB free; set WORKER_SCRATCH_GIB below "
            f"that, or mount a larger volume (up to {wanted} GiB may be used)"
        )
    made = "" if existing == place else "; it does not exist yet and will be created"
    return f"{folder}: {free:.0f} GiB free, up to {wanted} GiB will be used{made}"


def probe_shared_memory() -> str:
    """Check for the shared memory through which NCCL moves data between local GPUs."""
    try:
        size = shutil.disk_usage(_SHARED_MEMORY).total
        with tempfile.NamedTemporaryFile(dir=_SHARED_MEMORY):
            pass
    except OSError as error:
        raise Caution(
            f"{_SHARED_MEMORY}: {error.strerror}; with several GPUs, mount a writable tmpfs there"
        ) from None
    if size < _NCCL_BYTES and torch.cuda.device_count() > 1:
        raise Caution(
            f"{_SHARED_MEMORY} has {size >> 20} MiB, too little for NCCL between several "
            f"GPUs; provide 1 GiB (docker run --shm-size=1g, or an emptyDir with medium: Memory)"
        )
    return f"{size >> 20} MiB"


def probe_metrics() -> str:
    """Check that each configured metrics exporter works; the job runs even if one does not."""
    ways = []
    settings = Settings.from_env()
    port = settings.metrics_port
    if port:
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            raise Caution(
                f"WORKER_METRICS_PORT: {port}: {error.strerror}; choose another port"
            ) from None
        ways.append(f"port {port} is free")
    gateway = Gateway.from_environment()
    if gateway:
        ways.append(_probe_gateway(gateway))
    folder = settings.metrics_textfile
    if folder:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Caution(
                f"WORKER_METRICS_TEXTFILE: {folder} is not a writable folder; choose another one"
            )
        ways.append(f"{folder} is writable")
    return ", ".join(ways) or (
        "none of WORKER_METRICS_PORT, WORKER_PUSHGATEWAY and WORKER_METRICS_TEXTFILE is set"
    )


def _probe_gateway(gateway: Gateway) -> str:
    try:
        gateway.ask()
    except urllib.error.HTTPError as error:
        raise Caution(f"WORKER_PUSHGATEWAY: the server answers with status {error.code}") from None
    except Exception as error:
        # Never the error's text: it may contain part of the address, such as a password.
        reason = getattr(getattr(error, "reason", error), "strerror", None) or type(error).__name__
        raise Caution(
            f"WORKER_PUSHGATEWAY: cannot be reached ({reason}); correct it, or metrics will be lost"
        ) from None
    return "the Pushgateway is ready"
