"""Ways out for metrics: a port to scrape, a Pushgateway, a textfile for node exporters.

All are places, hence environment: `WORKER_METRICS_PORT`, `WORKER_PUSHGATEWAY`,
`WORKER_METRICS_TEXTFILE` (a directory). A failure here never fails training.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import pushadd_to_gateway, start_http_server, write_to_textfile

from worker.metrics.registry import Metrics

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 15.0
_TIMEOUT_SECONDS = 5.0


@contextmanager
def exported(metrics: Metrics, job: str, run: str) -> Iterator[None]:
    """Serve, push and write the metrics while inside, and once more on the way out."""
    port = os.environ.get("WORKER_METRICS_PORT")
    server = _try("WORKER_METRICS_PORT", lambda: _serve(int(port), metrics)) if port else None
    stop = threading.Event()

    def send() -> None:
        _try("WORKER_PUSHGATEWAY", lambda: _push(metrics, job, run))
        _try("WORKER_METRICS_TEXTFILE", lambda: _write(metrics, job))

    def send_regularly() -> None:
        send()
        while not stop.wait(_INTERVAL_SECONDS):
            send()

    thread = threading.Thread(target=send_regularly, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        send()
        if server:
            server()


def _try(
    setting: str, action: Callable[[], Callable[[], None] | None]
) -> Callable[[], None] | None:
    try:
        return action()
    except Exception as error:  # whatever a strange gateway answers, training goes on
        # An address can hold a password, so the setting is named and not shown.
        reason = getattr(error, "strerror", None) or type(error).__name__
        log.warning("metrics: %s does not work: %s", setting, reason)
        return None


def _serve(port: int, metrics: Metrics) -> Callable[[], None]:
    server, thread = start_http_server(port, registry=metrics.registry)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


def _push(metrics: Metrics, job: str, run: str) -> None:
    """Add to the group of this run, so that a restarted attempt goes on in the same series."""
    gateway = os.environ.get("WORKER_PUSHGATEWAY")
    if gateway:
        pushadd_to_gateway(
            gateway,
            job=job,
            registry=metrics.registry,
            grouping_key={"run": run},
            timeout=_TIMEOUT_SECONDS,
        )


def _write(metrics: Metrics, job: str) -> None:
    folder = os.environ.get("WORKER_METRICS_TEXTFILE")
    if folder:
        write_to_textfile(str(Path(folder) / f"worker-{job}.prom"), metrics.registry)
