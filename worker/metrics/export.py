"""Ways out for metrics: a port to scrape, a Pushgateway, a textfile for node exporters.

All are places, hence environment: `WORKER_METRICS_PORT` (of local rank 0; the next rank has the
next port), `WORKER_PUSHGATEWAY`, `WORKER_METRICS_TEXTFILE` (a directory). Nothing here fails
training, or holds it up for longer than a few seconds at its end.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, start_http_server, write_to_textfile

from worker.errors import ExitCode, WorkerError
from worker.metrics.board import Board
from worker.metrics.gateway import TIMEOUT_SECONDS, Gateway
from worker.metrics.outcome import KEPT, Outcome
from worker.metrics.registry import Metrics

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 15.0
_MOST_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Owner:
    """Whose metrics they are: the job's name and the address of its output."""

    job: str
    uri: str

    def textfile(self, folder: str, rank: int | None = None) -> Path:
        """The file of one rank, or that of the outcome."""
        name = f"worker-{self.job}-{hashlib.sha256(self.uri.encode()).hexdigest()[:8]}"
        return Path(folder) / (f"{name}.prom" if rank is None else f"{name}-{rank}.prom")


@contextmanager
def exported(
    metrics: Metrics, owner: Owner, rank: int, local_rank: int, board: Board
) -> Iterator[None]:
    """Hand out the metrics of a rank while inside.

    Where there is a port they are not pushed as well: each series would stand twice in Prometheus.
    """
    ways = _Ways(metrics)
    port = os.environ.get("WORKER_METRICS_PORT")
    scrapes = _Scrapes(metrics.registry)
    close = ways.try_out("port", lambda: _serve(int(port) + local_rank, scrapes)) if port else None
    stop = threading.Event()

    def send() -> None:
        if rank == 0:
            board.write(scraped=scrapes.at[-2:], kept=metrics.values(KEPT))
            if not port:
                ways.try_out("pushgateway", lambda: _push(metrics.registry, owner))
        ways.try_out("textfile", lambda: _write(metrics.registry, owner, rank))

    def send_regularly() -> None:
        while True:
            send()
            if stop.wait(_INTERVAL_SECONDS):
                return

    thread = threading.Thread(target=send_regularly, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(TIMEOUT_SECONDS)
        if rank == 0:
            board.write(scraped=scrapes.at[-2:], kept=metrics.values(KEPT))
        ways.try_out("textfile", lambda: _remove(owner, rank))
        if close:
            close()


def announce(owner: Owner, code: int, board: Board, patience: float) -> None:
    """Replace the metrics of a run that has ended by its outcome, wherever they went.

    Who scrapes is waited for, if the run was scraped more than once, for up to `patience` seconds
    and about as long as it is from one scrape to the next: a series that just ends looks like a
    run that was killed.
    """
    said = board.read()
    registry = Outcome(owner.job, owner.uri).tell(code, said.get("kept", {}))
    ways = _Ways()
    # The newer attempt has the group of the run, and is not to lose its metrics.
    apart = {"superseded": "true"} if code == ExitCode.SUPERSEDED else {}

    def send() -> None:
        ways.try_out("pushgateway", lambda: _push(registry, owner, **apart))
        ways.try_out("textfile", lambda: _write(registry, owner))

    thread = threading.Thread(target=send, name="outcome", daemon=True)
    thread.start()
    scraped = said.get("scraped", [])
    port = os.environ.get("WORKER_METRICS_PORT")
    if port and len(scraped) > 1:
        usual = scraped[-1] - scraped[0]
        until = time.monotonic() + min(patience, 1.5 * usual + 1, _MOST_PATIENCE_SECONDS)
        ways.try_out("port", lambda: _serve_once(int(port), registry, until))
    thread.join(TIMEOUT_SECONDS)


class _Ways:
    """Tries ways out, counts what fails, and warns once of each."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics
        self._warned: set[str] = set()

    def try_out(
        self, way: str, action: Callable[[], Callable[[], None] | None]
    ) -> Callable[[], None] | None:
        try:
            return action()
        except Exception as error:  # whatever a strange gateway answers, training goes on
            if self._metrics:
                self._metrics.export_failures(way).inc()
            if way not in self._warned:
                self._warned.add(way)
                log.warning("metrics: %s does not work: %s", _SETTINGS[way], _reason(error))
            return None


_SETTINGS = {
    "port": "WORKER_METRICS_PORT",
    "pushgateway": "WORKER_PUSHGATEWAY",
    "textfile": "WORKER_METRICS_TEXTFILE",
}


def _reason(error: Exception) -> str:
    """Why, without the address, which can hold a password."""
    if isinstance(error, WorkerError):
        return str(error)
    status = getattr(error, "code", None)
    if status:
        return f"the answer is {status}"
    return getattr(error, "strerror", None) or type(error).__name__


@dataclass
class _Scrapes:
    """A registry that notes when it was asked, in Unix seconds."""

    registry: CollectorRegistry
    at: list[float] = field(default_factory=list)

    def collect(self) -> Iterable[Metric]:
        self.at = [*self.at[-1:], time.time()]
        return self.registry.collect()


def _serve(port: int, scrapes: _Scrapes) -> Callable[[], None]:
    server, thread = start_http_server(port, registry=scrapes)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


def _serve_once(port: int, registry: CollectorRegistry, until: float) -> None:
    scrapes = _Scrapes(registry)
    close = _serve(port, scrapes)
    while not scrapes.at and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    time.sleep(_LOOK_SECONDS)  # the answer goes out
    close()


def _push(registry: CollectorRegistry, owner: Owner, **more: str) -> None:
    gateway = Gateway.from_environment()
    if gateway:
        gateway.put(registry, owner.job, owner.uri, **more)


def _write(registry: CollectorRegistry, owner: Owner, rank: int | None = None) -> None:
    folder = os.environ.get("WORKER_METRICS_TEXTFILE")
    if folder:
        write_to_textfile(str(owner.textfile(folder, rank)), registry)


def _remove(owner: Owner, rank: int) -> None:
    folder = os.environ.get("WORKER_METRICS_TEXTFILE")
    if folder:
        owner.textfile(folder, rank).unlink(missing_ok=True)
