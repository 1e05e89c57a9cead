"""Settings are checked before anything is sent, and the one at fault is named."""

import os
from pathlib import Path

import pytest

from worker.check.storage import probe_credentials
from worker.errors import ConfigurationError
from worker.store.aws_settings import check_settings
from worker.store.client import renew_client, s3_client


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_RETRY_MODE", "fast"),
        ("AWS_METADATA_SERVICE_TIMEOUT", "1s"),
        ("AWS_STS_REGIONAL_ENDPOINTS", "eu"),
    ],
)
def test_a_variable_that_boto3_refuses_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULTS_MODE", "standard")  # a valid value of some of the others, too
    monkeypatch.setenv(name, value)
    renew_client()
    with pytest.raises(ConfigurationError, match=f"^{name}: refused by the S3 client: .*{value}"):
        s3_client()


def test_no_variable_is_blamed_for_the_config_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\nretry_mode = fast\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_DEFAULTS_MODE", "legacy")
    renew_client()
    with pytest.raises(ConfigurationError, match="^AWS settings: refused by the S3 client: "):
        s3_client()


@pytest.mark.parametrize(
    ("profile", "complaint"),
    [("", "AWS_PROFILE: is empty; unset it"), ("nobody", "AWS_PROFILE: no profile 'nobody' in ")],
)
def test_a_profile_is_looked_for_wherever_the_endpoint_comes_from(
    profile: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", profile)
    renew_client()
    with pytest.raises(ConfigurationError, match=complaint):
        s3_client()
    with pytest.raises(ConfigurationError, match=complaint):
        probe_credentials()


def test_an_agent_of_containers_that_boto3_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/keys")
    with pytest.raises(ConfigurationError, match="^AWS_CONTAINER_CREDENTIALS_FULL_URI: refused"):
        probe_credentials()


@pytest.mark.parametrize(
    "text",
    [
        "[default]\nservices = a\n[services a]\ns3 = http://x\n",
        "[default]\nservices =\n  s3 = http://x\n",
    ],
)
def test_services_of_the_config_file_in_another_form_are_no_crash(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "default")
    check_settings(os.environ)  # which does not need them
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(ConfigurationError, match="`services` must name a section"):
        check_settings(os.environ)


def test_a_gateway_at_a_path_is_told_from_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host/gateway")
    with pytest.raises(
        ConfigurationError, match=r"looks like a bucket; .* with a slash: /gateway/"
    ):
        check_settings(os.environ)
    for path in ("gateway/", "s3", "storage/v1/s3"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://host/{path}")
        check_settings(os.environ)


def test_a_proxy_that_aws_itself_is_exempt_from_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy:1")
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY: .* is not an HTTP proxy"):
        check_settings(os.environ)
    monkeypatch.setenv("NO_PROXY", ".amazonaws.com")
    check_settings(os.environ)
    monkeypatch.setenv("AWS_REGION", "cn-north-1")
    monkeypatch.setenv("NO_PROXY", ".amazonaws.com.cn")
    check_settings(os.environ)


def test_the_region_of_the_config_file_counts_for_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy:1")
    monkeypatch.setenv("NO_PROXY", "s3.eu-west-1.amazonaws.com")
    check_settings(os.environ)
