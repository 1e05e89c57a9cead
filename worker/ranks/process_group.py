"""The process group of a job, and reductions over all its ranks."""

import datetime
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from worker.environment import Settings
from worker.errors import ConfigurationError, InfrastructureError, StopRequested, first_line
from worker.ranks.gpu_faults import gpu_error, start_cuda
from worker.ranks.network_interface import interface_to, is_loopback, own_address
from worker.ranks.rank import Rank
from worker.ranks.roll_call import join
from worker.ranks.stop_signal import StopFlag

log = logging.getLogger(__name__)

_POLL_SECONDS, _QUIET_SECONDS = 0.1, 3.0
_LEAVE_SECONDS = 10.0  # longest wait for the group's destruction; the exit ends it anyway
_HEAR_SECONDS = 1.0  # the scheduler signals all ranks, but not at the same instant
_CONNECT_SECONDS = 3
_STOPPED_EARLY = "stopped on request before the ranks met; start again"
_LOOPBACK = ("localhost", "127.0.0.1")
_CONNECTED = 512
"""The maximum number of ranks that all connect to each other at startup. With more, a rank that is
lost before others have communicated with it is noticed only by its neighbors.
"""
_CPU = torch.device("cpu")
# Source locations in messages, such as
# `[/gloo/transport/tcp/pair.cc:561] ` and ` in: /c10d/NCCLUtils.cpp:94, `.
_SOURCE_PLACE = re.compile(r"( in:)? ?\[?[^\s\]]*\.(cc|cpp|h|hpp|cu):\d+[\],]* ?")


def device_of(rank: Rank) -> torch.device:
    """Return the GPU of this rank, or the CPU if there is no GPU.

    The index wraps around, as Slurm may expose a single GPU to each task.
    """
    gpus = torch.cuda.device_count()
    return torch.device("cuda", rank.local_rank % gpus) if gpus else torch.device("cpu")


@contextmanager
def process_group(rank: Rank, listener: socket.socket | None, stop: StopFlag) -> Iterator[None]:
    """Join the other ranks, over NCCL between GPUs and gloo between CPUs.

    Args:
        rank: This rank; rank 0 serves the rendezvous.
        listener: The socket to serve it on, if a parent process has bound one.
        stop: The flag that stop signals set.

    Raises:
        InfrastructureError: If the others cannot be reached, or one is lost within the context.
        StopRequested: If a stop signal arrives before all ranks have joined.
    """
    if rank.master_addr in _LOOPBACK:
        # Otherwise, gloo resolves this machine's name, which often fails in containers.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if rank.world_size > _CONNECTED:
        # Otherwise, every rank connects to every other at startup: 8 million connections for 4,096.
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    device = device_of(rank)
    if device.type == "cuda":
        start_cuda(device)
    try:
        store = _open_rendezvous(rank, listener, stop)
        _choose_interface(rank, store)
        dist.init_process_group(
            # GPU jobs need gloo as well, for what the hosts exchange in CPU tensors.
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank.rank,
            world_size=rank.world_size,
            timeout=datetime.timedelta(seconds=Settings.from_env().collective_seconds),
        )
    except (dist.DistError, RuntimeError) as error:
        # A rank that exits on the signal may take down the store before others receive theirs.
        if _is_stopping(stop):
            raise StopRequested(_STOPPED_EARLY) from None
        raise InfrastructureError(
            f"no rendezvous at {rank.rendezvous}: {first_line(error)}"
        ) from None
    clean = False
    try:
        with meaningful_errors():
            yield
        clean = True
    finally:
        # NCCL waits for the others when it is destroyed: a rank that fails alone would hang and
        # lose its exit code, and one whose peer dies at the very end would hang, too.
        if clean or device.type != "cuda":
            leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
            leaving.start()
            leaving.join(_LEAVE_SECONDS)


@contextmanager
def meaningful_errors() -> Iterator[None]:
    """Raise `InfrastructureError` for lost ranks or GPUs, `ConfigurationError` for bad setups.

    A setup is bad if the GPU runs out of memory, or if NCCL refuses the ranks.
    """
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, dist.DistBackendError) and "invalid usage" in str(error):
            raise ConfigurationError(
                f"NCCL refuses these ranks, as it does if two share one GPU: {first_line(error)}"
            ) from None
        # gloo raises plain RuntimeErrors, recognizable only by their text.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise InfrastructureError(
                f"lost another rank ({_gloo_reason(error)}); its own log says why it ended"
            ) from None
        if isinstance(error, torch.OutOfMemoryError):
            raise ConfigurationError(
                "train.batch_size: a rank's share does not fit into GPU memory; use more ranks, "
                "a smaller data.image_size or train.micro_batch"
            ) from None
        failure = gpu_error(error)
        if failure:
            raise failure from None
        raise


def _gloo_reason(error: Exception) -> str:
    """Return the error message of gloo or NCCL, without its source location and advice."""
    reason = (
        _SOURCE_PLACE.sub(": ", first_line(error)).partition(". This is typically")[0].strip(": ")
    )
    return reason[:1].lower() + reason[1:] if reason[1:2].islower() else reason


def _open_rendezvous(rank: Rank, listener: socket.socket | None, stop: StopFlag) -> Any:
    """Return the store once all ranks have joined it.

    torchrun's agent, if there is one, serves the store; otherwise, rank 0 does.
    torch would ignore signals while it waits for the others, so this function polls instead.
    """
    # 1. Connect to the store, or serve it.
    # 2. Count this rank in `met`, and poll until all ranks are counted.
    # 3. Only then return: `init_process_group`, which follows, blocks and ignores signals.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = rank.leads and not agent
    looks = _looks(rank, stop)
    store = None
    while not store:
        if serves or _is_served(rank):
            store = _connect(rank, listener, serves=serves)
        if not store:
            next(looks)
    # The timeout that a client connects with is too short for reads that wait for other ranks.
    store.set_timeout(datetime.timedelta(seconds=Settings.from_env().rendezvous_seconds))
    # torchrun keeps its store when it restarts the ranks, and with it the keys of the dead ones.
    prefix = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    join(shared, rank.world_size, looks)
    return shared


def _connect(rank: Rank, listener: socket.socket | None, *, serves: bool) -> Any:
    """Connect to the store; return None if its server has since gone away.

    The timeout of a client is short, as torch ignores signals while it retries.
    """
    seconds = (
        Settings.from_env().rendezvous_seconds
        if serves
        else min(_CONNECT_SECONDS, Settings.from_env().rendezvous_seconds)
    )
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            rank.master_addr,
            rank.master_port,
            rank.world_size,
            is_master=serves,
            timeout=datetime.timedelta(seconds=seconds),
            # Waiting here would block signals until all ranks have connected.
            wait_for_workers=False,
            # The store closes the descriptor, so Python's socket must no longer own it.
            master_listen_fd=listener.detach() if listener else None,
        )
    except (dist.DistError, RuntimeError):
        if serves:
            raise
        return None


def _choose_interface(rank: Rank, store: Any) -> None:
    """Have gloo listen on an interface on which the other nodes can reach this one.

    This is the interface of the route to rank 0. If rank 0's name resolves to a loopback address,
    this rank uses the route to a rank on another node, whose address is in the store.
    """
    if rank.world_size == rank.local_world_size:
        return
    address = own_address(rank.master_addr, rank.master_port) or ""
    outside = bool(address) and not is_loopback(address)
    store.set(f"address {rank.rank}", address if outside else "")
    # Only now, after publishing this rank's address: others may be waiting for it in `get`.
    chosen = os.environ.get("GLOO_SOCKET_IFNAME")
    if chosen:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={chosen}")
        return
    # A generator, so that ranks with an outside address read nothing; else every rank would read
    # all addresses.
    others = (store.get(f"address {other}").decode() for other in range(rank.world_size))
    target = address if outside else next(filter(None, others), "")
    interface = interface_to(target) if target else None
    if interface:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        # "=" asks for exactly this name; NCCL would otherwise take any that begins with it.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    else:
        log.warning(
            "no interface leads to the other nodes (%s); set GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME if the ranks do not connect",
            target or "no rank has an address outside of its node",
        )


def _looks(rank: Rank, stop: StopFlag) -> Iterator[None]:
    """Pause between polls for the other ranks; raise an error once it is time to give up."""
    began = time.monotonic()
    said = False
    while time.monotonic() < began + Settings.from_env().rendezvous_seconds:
        if stop.requested:
            raise StopRequested(_STOPPED_EARLY)
        yield
        time.sleep(_POLL_SECONDS)
        if not said and time.monotonic() > began + _QUIET_SECONDS:
            said = True
            log.warning("rank %d is waiting for the other ranks at %s", rank.rank, rank.rendezvous)
    raise RuntimeError(
        f"the {rank.world_size} ranks did not meet within "
        f"{Settings.from_env().rendezvous_seconds} s"
    )


def _is_stopping(stop: StopFlag) -> bool:
    """Return whether a stop has been requested, or is requested within a moment."""
    deadline = time.monotonic() + _HEAR_SECONDS
    while not stop.requested and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return stop.requested


def _is_served(rank: Rank) -> bool:
    """Return whether rank 0 can be reached yet; its pod may start before DNS knows it."""
    try:
        with socket.create_connection((rank.master_addr, rank.master_port), timeout=2):
            return True
    except OSError:
        return False


def total(*values: float, device: torch.device = _CPU) -> list[float]:
    """Return each value summed over all ranks, in float64.

    On the CPU, a lost rank is noticed at once. With a GPU as `device`, the sum uses the links
    between GPUs, which scales to thousands of ranks, and runs after all work queued on the GPU.
    """
    # float64 holds counts exactly up to 2**53; float32 only up to 2**24.
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    summed: list[float] = tensor.tolist()
    return summed


def highest(*values: float, device: torch.device = _CPU) -> list[float]:
    """Return the maximum of each value over all ranks; `device` as in `total`."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    found: list[float] = tensor.tolist()
    return found
