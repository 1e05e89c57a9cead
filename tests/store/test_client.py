"""The client: endpoints, regions and credentials."""

import socket
from pathlib import Path

import pytest
import tenacity

from tests.support.proxy import Request, proxy
from worker.errors import ConfigurationError, InfrastructureError
from worker.store import open_store
from worker.store.client import renew_client, s3_client


def test_an_unreachable_endpoint_is_infrastructure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:hunter2@127.0.0.1:{port}")
    # One retry, then a pause that would outlast the deadline, on however slow a machine.
    pauses = tenacity.wait_chain(tenacity.wait_fixed(0.1), tenacity.wait_fixed(1000))
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "100")
    monkeypatch.setattr(tenacity, "wait_random_exponential", lambda **_: pauses)
    renew_client()
    try:
        with pytest.raises(InfrastructureError, match=f" http://127.0.0.1:{port} cannot be rea"):
            open_store("s3://bucket/x").get("y")
        assert "trying again" in caplog.text
        assert "hunter2" not in caplog.text
    finally:
        renew_client()


def test_a_missing_bucket_is_configuration(aws: None) -> None:
    with pytest.raises(ConfigurationError, match="s3://no-such-bucket/x/y: no such bucket"):
        open_store("s3://no-such-bucket/x").get("y")
    with pytest.raises(ConfigurationError, match="s3://a~b/x/y: not a valid S3 address") as caught:
        open_store("s3://a~b/x").get("y")
    assert "\n" not in str(caught.value)


def test_renewed_credentials_are_taken_up(
    bucket: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar writes new keys into the credentials file; the old ones have expired."""
    keys_used = []

    def plan(request: Request) -> str | None:
        keys_used.append(request.key)
        if request.key == "old":
            file.write_text("[default]\naws_access_key_id=new\naws_secret_access_key=x\n")
            return "expired"
        return None

    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id=old\naws_secret_access_key=x\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "90")
    with proxy(s3_endpoint) as server:
        server.plan = plan
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        renew_client()
        store = open_store(bucket)
        store.put("x", b"1")
        assert keys_used == ["old", "new"]
    renew_client()


def test_a_password_in_an_endpoint_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@bad host:9")
    renew_client()
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL: is not HOST") as caught:
        open_store("s3://bucket/x").get("y")
    assert "hunter2" not in str(caught.value)
    renew_client()


def test_the_region_of_other_sdks_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    renew_client()
    assert s3_client().meta.region_name == "eu-west-1"
    renew_client()
