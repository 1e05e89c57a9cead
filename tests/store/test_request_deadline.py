"""Requests end with their deadline, however slowly they drip."""

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable

import pytest

from tests.support.proxy import Proxy
from tests.support.stores import keys
from worker.errors import InfrastructureError
from worker.store import Store, open_store
from worker.store.client import renew_client


@pytest.mark.parametrize("fault", ["drip", "drip head"])
def test_a_drip_ends_with_the_deadline(
    fault: str, faulty: tuple[Proxy, Store], impatient: Callable[[], None]
) -> None:
    """A byte now and then is no answer, whether of the head or of the body."""
    server, store = faulty
    store.put("long", bytes(100))  # makes the client, too, whose reads may then take longer
    impatient()
    server.plan = lambda request: fault
    for ask in (lambda: store.get("long"), lambda: list(store.list())):
        began = time.monotonic()
        with pytest.raises(InfrastructureError, match=r"sent no complete response within \d s"):
            ask()
        assert time.monotonic() - began < 60
    server.plan = lambda request: None
    assert store.get("object") == b"0123456789"


def test_a_handshake_that_hangs_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes connections, but never speaks TLS."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{port}")
        renew_client()
        with pytest.raises(InfrastructureError, match=r"sent no complete response within \d s"):
            open_store("s3://bucket/").get("object")
    renew_client()


def test_a_drip_is_noticed_by_each_process(
    faulty: tuple[Proxy, Store], impatient: Callable[[], None]
) -> None:
    server, store = faulty
    store.put("long", bytes(100))  # the monitor has a thread in this process
    impatient()
    server.plan = lambda request: "drip"

    def read() -> None:
        with contextlib.suppress(InfrastructureError):
            store.get("long")
            os._exit(1)

    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    child.join(60)  # a drip that nothing cuts off ends earlier, with 1
    child.kill()
    assert child.exitcode == 0


def test_a_check_before_a_write_does_not_lift_its_deadline(
    faulty: tuple[Proxy, Store], impatient: Callable[[], None]
) -> None:
    """The check makes requests of its own, within the one that is limited."""
    server, store = faulty
    assert store.get("object")
    impatient()
    server.plan = lambda request: "drip head" if request.conditional else None
    began = time.monotonic()
    with pytest.raises(InfrastructureError):
        store.put_if_absent("new", b"x", lambda: print(keys(store)))
    assert time.monotonic() - began < 60
