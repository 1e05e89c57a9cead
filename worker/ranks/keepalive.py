"""TCP keepalive for the connections between ranks.

The connections of a process that dies are closed. Those of a machine that loses its power or
network are not, and by default a peer waits for a quarter of an hour. With keepalive, the kernel
probes the peer's kernel, which answers even if the process there is merely suspended or busy.
"""

import os
import socket
import stat
from pathlib import Path

_IDLE_SECONDS, _INTERVAL_SECONDS, _MAX_PROBES = 3, 2, 3
_TIMEOUT_SECONDS = _IDLE_SECONDS + _MAX_PROBES * _INTERVAL_SECONDS
"""Longest outage of the network that a connection survives."""


def keep_alive() -> int:
    """Turn keepalive on for all TCP connections that this process has now; return their number.

    All of them, because gloo does not say which are its own. The others come to no harm: a request
    to storage that fails is tried again.
    """
    count = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            if not stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                continue
            # A copy, so that closing it here does not close the connection.
            connection = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # closed by another thread
            continue
        with connection:
            count += _keep_alive(connection)
    return count


def _keep_alive(connection: socket.socket) -> bool:
    tcp = connection.family in (socket.AF_INET, socket.AF_INET6)
    if not tcp or connection.type != socket.SOCK_STREAM:
        return False
    try:
        connection.getpeername()  # raises for a socket that only listens
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, _IDLE_SECONDS),
            (socket.TCP_KEEPINTVL, _INTERVAL_SECONDS),
            (socket.TCP_KEEPCNT, _MAX_PROBES),
            # Keepalive probes only idle connections; this bounds the wait for acknowledgments.
            (socket.TCP_USER_TIMEOUT, 1000 * _TIMEOUT_SECONDS),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        return False
    return True
