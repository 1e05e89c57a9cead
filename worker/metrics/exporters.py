"""Exporters for metrics: a scrape port, a Pushgateway, and textfiles for node exporters.

They depend on the site, so they are set in the environment: `WORKER_METRICS_PORT` (for local
rank 0; each further rank uses the next port), `WORKER_PUSHGATEWAY` and `WORKER_METRICS_TEXTFILE`
(a directory). Nothing here makes training fail or delays its end beyond the allowed time.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from prometheus_client import CollectorRegistry

from worker.environment import Settings
from worker.errors import ExitCode, WorkerError
from worker.metrics import textfile
from worker.metrics.pushgateway import TIMEOUT_SECONDS, Gateway
from worker.metrics.registry import Metrics
from worker.metrics.run_labels import Owner
from worker.metrics.run_outcome import KEPT, Outcome
from worker.metrics.scrape_port import Port, expected
from worker.metrics.shared_outcome import SharedOutcome

T = TypeVar("T")
log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 15.0
_MAX_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.05
_SUPERSEDED = {"superseded": "true"}
_SETTINGS = {
    "port": "WORKER_METRICS_PORT",
    "pushgateway": "WORKER_PUSHGATEWAY",
    "textfile": "WORKER_METRICS_TEXTFILE",
}

Patience = Callable[[], float]
"""Function that returns the seconds left from now."""


@contextmanager
def exported(
    metrics: Metrics,
    owner: Owner,
    rank: int,
    *,
    local_rank: int,
    outcome: SharedOutcome,
    patience: Patience,
) -> Iterator[None]:
    """Export the metrics of a rank inside the context.

    If a port serves them, they are not pushed as well; otherwise, Prometheus would have each
    series twice.

    Args:
        metrics: The metrics.
        owner: The run that they belong to.
        rank: The rank.
        local_rank: The rank's index on this node, which is added to the port number.
        outcome: The outcome shared by all ranks of the node.
        patience: Returns the seconds left for a last scrape or push.
    """
    ways = _Ways(metrics)
    port = _open_port(ways, metrics.registry, local_rank)
    stop = threading.Event()

    def tell() -> None:
        if rank == 0:
            outcome.write(scrapes=dict(port.scrapes) if port else {}, kept=metrics.values(KEPT))

    def send_regularly() -> None:
        # Earlier attempts' files and gateway groups would otherwise be collected with the new ones.
        if local_rank == 0:
            ways.try_out("textfile", lambda: textfile.remove(owner))
        if rank == 0:
            ways.to_gateway(lambda gateway: _forget(gateway, owner))
        while True:
            tell()
            if rank == 0 and not port:
                ways.to_gateway(lambda gateway: gateway.put(metrics.registry, owner))
            ways.try_out("textfile", lambda: textfile.write(metrics.registry, owner, rank))
            if stop.wait(_INTERVAL_SECONDS):
                return

    thread = threading.Thread(target=send_regularly, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        tell()
        stop.set()
        thread.join(_bounded(patience))
        # Only once the thread has ended: it would write the file again.
        ways.try_out("textfile", lambda: textfile.remove(owner, rank))
        if port:
            port.close()


def announce(owner: Owner, code: int, outcome: SharedOutcome, patience: Patience) -> None:
    """Export the outcome of a run that has ended, in place of its metrics.

    Waits for clients that have scraped regularly, as long as `patience` allows but at most a
    minute: a series that merely ends looks like a killed run. A start that ends before it becomes
    an attempt adds its exit code to the existing metrics.

    Args:
        owner: The run.
        code: Its exit code.
        outcome: The outcome shared by all ranks of the node.
        patience: Returns the seconds left for this.
    """
    said = outcome.read()
    kept = said.get("kept", {})
    superseded = code == ExitCode.SUPERSEDED
    registry = Outcome(owner.job, owner.run).tell(code, {} if superseded else kept)
    ways = _Ways()

    def send() -> None:
        if superseded:  # the run's group on the gateway belongs to the newer attempt
            ways.to_gateway(lambda gateway: gateway.put(registry, owner, **_SUPERSEDED))
        elif "attempt" in kept:
            ways.to_gateway(lambda gateway: gateway.put(registry, owner))
        else:
            ways.to_gateway(lambda gateway: gateway.add(registry, owner))
        ways.try_out("textfile", lambda: textfile.remove(owner))
        ways.try_out("textfile", lambda: textfile.write(registry, owner))

    thread = threading.Thread(target=send, name="outcome", daemon=True)
    thread.start()
    _await_scrapes(ways, registry, expected(said.get("scrapes", {}), time.time()), patience)
    thread.join(_bounded(patience))


def _await_scrapes(
    ways: "_Ways", registry: CollectorRegistry, clients: dict[str, float], patience: Patience
) -> None:
    """Serve the outcome until all `clients` have scraped it or their time is up."""
    port = _open_port(ways, registry, 0) if clients else None
    if not port:
        return
    wanted, began = min(max(clients.values()), _MAX_PATIENCE_SECONDS), time.monotonic()
    log.info("waiting up to %.0f s for the last scrape", min(wanted, patience() / 2))
    # Use at most half of the time left: a process that is killed has the wrong exit code.
    # `patience()` falls as the time waited rises, so the two meet halfway.
    while not clients.keys() <= port.scrapes.keys() and time.monotonic() - began < min(
        wanted, patience()
    ):
        time.sleep(_POLL_SECONDS)
    time.sleep(_POLL_SECONDS)  # let the last response go out
    port.close()


def _open_port(ways: "_Ways", registry: CollectorRegistry, local_rank: int) -> Port | None:
    def serve() -> Port | None:
        first = Settings.from_env().metrics_port
        return Port(first + local_rank, registry) if first else None

    return ways.try_out("port", serve)


def _bounded(patience: Patience) -> float:
    left = patience()
    return TIMEOUT_SECONDS if math.isinf(left) else max(0.0, min(TIMEOUT_SECONDS, left))


class _Ways:
    """Runner of exports that counts failures and warns once per exporter."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics
        self._warned: set[str] = set()

    def try_out(self, way: str, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Exception as error:  # whatever fails here, training continues
            if self._metrics:
                self._metrics.export_failures(way).inc()
            if way not in self._warned:
                self._warned.add(way)
                log.warning("metrics: %s does not work: %s", _SETTINGS[way], _reason(error))
            return None

    def to_gateway(self, tell: Callable[[Gateway], None]) -> None:
        def try_it() -> None:
            gateway = Gateway.from_environment()
            if gateway:
                tell(gateway)

        self.try_out("pushgateway", try_it)


def _reason(error: Exception) -> str:
    """Return the reason without the address, which may contain a password."""
    if isinstance(error, WorkerError):
        return str(error)
    status = getattr(error, "code", None)
    if status:
        return f"the server responded with status {status}"
    return getattr(error, "strerror", None) or type(error).__name__


def _forget(gateway: Gateway, owner: Owner) -> None:
    """Delete what earlier attempts of the run left on the gateway."""
    gateway.delete(owner)
    gateway.delete(owner, **_SUPERSEDED)
