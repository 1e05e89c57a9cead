"""Stores of every kind, and one behind a proxy with faults."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from bench.servers import Server, start_minio
from tests.support.ceph import start_rgw
from tests.support.proxy import Proxy, proxy
from worker.store import Store, open_store
from worker.store.client import renew_client


@pytest.fixture(
    params=[
        "moto",
        "local",
        pytest.param("minio", marks=pytest.mark.e2e),
        pytest.param("rgw", marks=pytest.mark.e2e),
    ]
)
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """Each kind of store; RGW over https with a CA of its own."""
    if request.param == "local":
        yield open_store(f"{tmp_path}/prefix")
        return
    request.getfixturevalue("aws")  # first, as it leads to moto
    if request.param != "moto":
        server = request.getfixturevalue(request.param)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        # The default session keeps the credentials that it was made with.
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        renew_client()
    bucket = request.getfixturevalue("bucket")
    if request.param != "moto":
        assert os.environ["AWS_ENDPOINT_URL"] == server.endpoint
    yield open_store(f"{bucket}/some/prefix")
    renew_client()


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="session")
def rgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_rgw(tmp_path_factory.mktemp("rgw")) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Shorten the deadline, for faults that last."""
    return lambda: monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "4")


@pytest.fixture
def faulty(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, Store]]:
    """A store behind a proxy, with the time that a slow machine needs for a retry."""
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "20")
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        store = open_store(f"{bucket}/some/prefix")
        store.put("object", b"0123456789")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        renew_client()
        yield server, store
    renew_client()
