"""Parent of a node's ranks: forks them, forwards signals and returns their exit code.

Forking saves each rank the import of torch; it is safe, as the parent uses no device or thread.
"""

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess

from worker.errors import InfrastructureError, exit_code_of, most_fatal
from worker.forks import STOP_SIGNALS, cause_of, die_with
from worker.launch.guard import exit_code, leave
from worker.launch.topology import Spawn
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_PEER_GRACE_SECONDS = 30.0

RunRank = Callable[[Rank, socket.socket | None], None]
"""Function that runs one rank; rank 0 gets the socket that the others connect to."""


def run_ranks(spawn: Spawn, run: RunRank, stop: StopFlag) -> int:
    """Start the ranks of this node and wait for them.

    A single rank runs in this process. Ranks exit together: once one has exited, the others get a
    grace period to exit by themselves (after a failure they notice the lost connection) and are
    then killed.

    Args:
        spawn: The ranks to start.
        run: Function that runs a rank.
        stop: The stop flag, whose signals are forwarded to the ranks.

    Returns:
        The most fatal exit code of the ranks.
    """
    stop.has_begun = True
    listener = _listen(spawn) if spawn.node_rank == 0 else None
    if listener and spawn.nodes == 1:
        # The kernel chose the port, so the ranks have to be told.
        port = listener.getsockname()[1]
        spawn = Spawn(
            node_rank=0,
            nodes=1,
            local_world_size=spawn.local_world_size,
            master_addr=spawn.master_addr,
            master_port=port,
        )
    if spawn.world_size == 1:
        return exit_code(lambda: run(spawn.ranks()[0], listener))
    parent = os.getpid()
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(
            target=_child,
            args=(parent, run, rank, listener),
            name=f"rank {rank.rank}",
        )
        for rank in spawn.ranks()
    ]
    # Block signals until parent and child can handle them: a signal that reaches a child while it
    # is being forked is lost, since Python discards signals pending at a fork.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for child in children:
        child.start()
    # Rank 0 has its own copy; this one would keep the port open after rank 0 has died.
    if listener:
        listener.close()

    def forward(number: int) -> None:
        # Forward the same signal, as the grace period depends on it; only SIGINT, which ranks
        # ignore, is forwarded as SIGTERM.
        number = signal.SIGTERM if number == signal.SIGINT else number
        for child in children:
            if child.pid and child.is_alive():
                os.kill(child.pid, number)

    stop.listener = forward
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if stop.requested:  # received by another thread before the listener was set
        forward(signal.SIGTERM)
    return _wait(children)


def _listen(spawn: Spawn) -> socket.socket:
    """Return the rendezvous socket, bound here so that no other job can take the port."""
    if spawn.nodes == 1:
        return socket.create_server(("127.0.0.1", 0))
    both = socket.has_dualstack_ipv6()  # nodes may have only IPv6
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", spawn.master_port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise InfrastructureError(f"MASTER_PORT {spawn.master_port}: {error.strerror}") from None


def _child(parent: int, run: RunRank, rank: Rank, listener: socket.socket | None) -> None:
    # A rank must not outlive its parent: it would keep training as an unnoticed second attempt.
    die_with(parent)
    # A terminal sends SIGINT to the entire process group; a rank gets it once, from its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if listener and rank.rank:
        # Otherwise the socket would stay open as long as this rank runs, and once rank 0 is gone,
        # this rank would wait for an answer on it without reacting to signals.
        listener.close()
        listener = None
    leave(exit_code(lambda: run(rank, listener)))


def _wait(children: list[ForkProcess]) -> int:
    running = list(children)
    codes: list[int] = []
    deadline: float | None = None
    while running:
        # Poll, as the wait is not interrupted by a signal that is blocked in this thread and
        # delivered to another one.
        timeout = _POLL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        ended = wait([child.sentinel for child in running], timeout)
        for child in [child for child in running if child.sentinel in ended]:
            child.join()
            running.remove(child)
            status = child.exitcode or 0
            if status < 0:
                log.error("%s was killed by %s", child.name, cause_of(-status))
            codes.append(exit_code_of(status))
            # From the first exit on, even one with code 0: ranks end together, so the others should
            # be about to exit.
            if deadline is None:
                deadline = time.monotonic() + _PEER_GRACE_SECONDS
        if deadline is not None and time.monotonic() >= deadline:
            # Their codes are not counted: they were killed here, and the cause is in a code already
            # listed.
            for child in running:
                log.error("%s is still running although a peer has exited; killing it", child.name)
                child.kill()
                child.join()
            break
    return most_fatal(codes)
