"""Secrets are hidden, and nothing else."""

import time
from pathlib import Path

import pytest

from worker.redaction import redacted


def test_a_password_may_hold_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "p@ss<word>zz")
    assert redacted("s3://u:p@ss<word>zz@host/x") == "s3://host/x"
    assert redacted("s3://user:pa<ss@host/x and s3://b/k") == "s3://host/x and s3://b/k"
    assert "word" not in redacted("it is p@ss<word>zz")


def test_the_current_folder_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/somebody/data")
    monkeypatch.setenv("OLDPWD", "/home/somebody")
    assert redacted("file:///home/somebody/data/x") == "file:///home/somebody/data/x"


@pytest.mark.parametrize("name", ["SSH_AUTH_SOCK", "API_KEY", "MONKEY", "KEYRING_HOME", "PASSAGE"])
def test_a_path_that_exists_is_no_secret(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(tmp_path))
    assert redacted(f"file://{tmp_path}/x") == f"file://{tmp_path}/x"


@pytest.mark.parametrize("name", ["API_KEY", "DB_PASSWORD", "HF_TOKEN", "MYSQL_PWD", "X_SECRET_1"])
def test_what_is_named_like_a_secret_is_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter2hunter2")
    assert redacted("x hunter2hunter2 y") == "x [hidden] y"
    monkeypatch.delenv(name)
    monkeypatch.setenv("MONKEY_AUTHOR", "hunter2hunter2")
    assert redacted("x hunter2hunter2 y") == "x hunter2hunter2 y"


@pytest.mark.parametrize("name", ["SORT_KEY", "JOB_AUTH", "BUILD_PAT", "PRIVATE", "COOKIE_POLICY"])
def test_a_word_under_a_doubtful_name_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "training")
    assert redacted("s3://data/training/x.jpg") == "s3://data/training/x.jpg"
    monkeypatch.setenv(name, "same-site")
    assert redacted("same-site") == "same-site"
    monkeypatch.setenv(name, "hunter2hunter2")
    assert redacted("x hunter2hunter2 y") == "x [hidden] y"


def test_redaction_takes_linear_time() -> None:
    for piece in ("?", "?sig", "://a:", "sig", "://a/", "?a=", "=sig", "://a@"):
        began = time.process_time()
        redacted(piece * 20_000 + "@!")
        assert time.process_time() - began < 5, piece  # minutes, if it were quadratic


def test_a_short_id_of_a_key_may_be_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    monkeypatch.setenv("MY_SECRET_ID", "hunter2hunter2")
    text = "file:///home/stranger/x hunter2hunter2 AKIAIOSFODNN7EXAMPLE"
    assert redacted(text) == "file:///home/stranger/x [hidden] AKIAIOSFODNN7EXAMPLE"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    assert redacted(text) == "file:///home/stranger/x [hidden] [hidden]"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", '{"private_key": "hunter2/hunter2"}'),
        ("DB_PASSWORD_SOCK", "hunter2hunter2"),
        ("TOKEN_LIMIT", "letmeinplease"),
        ("PASSWORD_STORE", "hunter2hunter2"),
    ],
)
def test_what_such_a_name_does_not_usually_hold_is_hidden(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"it is {value}") == "it is [hidden]"


@pytest.mark.parametrize("name", ["STORE_PASSWORD", "MAX_AUTH_TOKEN", "COUNT_SECRET"])
def test_what_ends_like_a_secret_is_one_even_if_it_is_a_word(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "letmein")
    assert redacted("it is letmein") == "it is [hidden]"


def test_what_is_no_secret_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("MAX_TOKENS", "100000")
    monkeypatch.setenv("PASSWORD_STORE", "datasets")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nosuch/gcp.json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    monkeypatch.setenv("MY_TOKEN", "photos")  # as a folder of that name is here
    for text in (
        "/var/run/secrets/token does not exist",
        "false, s3://bucket/key: step 3?",
        "see https://host/docs?page=3",
        "100000 datasets of photos, /nosuch/gcp.json",
        "mail me@host",
    ):
        assert redacted(text) == text
