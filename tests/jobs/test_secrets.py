"""No secret reaches a log, an object, a metric or an error."""

import json
import logging
import os
import signal
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from bench.servers import free_port
from tests.support.processes import Ended, Run, Start, Write
from tests.support.stores import contents, keys
from worker.store import Store, open_store

SEED = "planted"  # in every secret


SECRETS = {
    "AWS_ACCESS_KEY_ID": f"AKIA{SEED}",
    "AWS_SECRET_ACCESS_KEY": f"{SEED}/with+slashes=",
    "AWS_SESSION_TOKEN": f'{SEED}"quoted"\\token',
    "HF_TOKEN": f"hf_{SEED}",
    "DATABASE_PASSWORD": f"{SEED} with spaces",
    "SIGNING_PRIVATE_KEY": f"-----BEGIN {SEED}-----\nabc{SEED}\n-----END-----",
    "HTTPS_PROXY": f"http://me:{SEED}@127.0.0.1:9",
    "DB_PASS": f"{SEED}+a b/c",
    "GITHUB_PAT": f"ghp_{SEED}",
    "AZURE_STORAGE_KEY": f"{SEED}==",
    "SSH_KEY": f"ssh-{SEED}",
    "SQL_CONNECTION_STRING": f"Server=x;Pwd={SEED}",
    "SLACK_WEBHOOK_URL": f"https://hooks/{SEED}",
    "DATABASE_URL": f"postgres://me:{SEED}/p@ss word@db/x",
}


QUERY = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={SEED}%2Fus&X-Amz-Signature={SEED}"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment full of secrets; the folder that metrics are written to."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv("WORKER_METRICS_TEXTFILE", str(folder))
    monkeypatch.setenv("WORKER_PUSHGATEWAY", f"http://me:{SEED}@127.0.0.1:{free_port()}/")
    return folder


@pytest.fixture
def remote(job: dict[str, Any], bucket: str, dataset: Path) -> tuple[dict[str, Any], Store]:
    """The job with all that it reads and writes in S3."""
    for split in ("train", "val"):
        source, target = open_store(f"{dataset}/{split}"), open_store(f"{bucket}/{split}/")
        for key, data in contents(source).items():
            target.put(key, data)
        job["data"][split] = target.uri
    output = open_store(f"{bucket}/run/")
    job["output"] = output.uri
    return job, output


def spill() -> None:
    """Have the worker fail with every secret in its hands, after a library has warned of them."""
    from worker.train import trainer

    def fail(*_: object) -> None:
        everything = " ".join(os.environ.values())
        warnings.warn(f"a library says {everything}", stacklevel=1)
        logging.getLogger("worker.test").warning("see https://host/x?%s", QUERY)
        forms = [f(v) for v in SECRETS.values() for f in (repr, json.dumps, quote, quote_plus)]
        raise RuntimeError(
            f"{everything} {forms} {list(SECRETS.values())} https://me:{SEED}/x@host/?{QUERY} "
            f"https://host/?{quote(QUERY)} https://host/#{QUERY}"
        )

    trainer.Trainer.train = fail  # type: ignore[assignment,method-assign]


def require_clean(*texts: str | bytes) -> None:
    for text in texts:
        data = text if isinstance(text, bytes) else text.encode()
        at = data.find(SEED.encode())
        assert at < 0, data[max(0, at - 200) : at + 50]


def require_quiet(ended: Ended, code: int) -> None:
    require_clean(ended.out, ended.err)
    assert ended.code == code, ended.err


def test_a_run_keeps_its_secrets(
    run: Run,
    start: Start,
    planted: Path,
    remote: tuple[dict[str, Any], Store],
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, output = remote
    job["train"]["epochs"] = 40
    port = free_port()
    with monkeypatch.context() as scraped:
        scraped.setenv("WORKER_METRICS_PORT", str(port))
        running = start("train", "--nproc", "2", write(job))
        running.wait_for("epoch 1/40")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            require_clean(response.read())
        require_clean(*(file.read_bytes() for file in planted.iterdir()))
        running.send(signal.SIGTERM)
        ended = running.wait()
        require_quiet(ended, 75)
    failed = run("train", write(job), sabotage=spill)
    require_quiet(failed, 70)
    for trace in ("RuntimeError", "a library says", "see https://host/x?"):
        assert trace in failed.err  # it was said, and the secrets in it were not
    require_quiet(run("status", output.uri), 0)
    require_quiet(run("check", write(job)), 0)
    require_quiet(run("plan", "--resume", write(job)), 0)
    page = tmp_path / "report.html"
    require_quiet(run("report", output.uri, "--out", str(page)), 0)
    require_quiet(run("compare", output.uri, output.uri, "--out", str(tmp_path / "c.html")), 0)
    require_clean(page.read_bytes(), (tmp_path / "c.html").read_bytes())
    assert "RuntimeError" in page.read_text()
    found = contents(output)
    assert {name.split("/")[0] for name in found} >= {"records", "attempts"}
    require_clean(*found.values(), *map(str, found))
    require_clean(*(file.read_bytes() for file in planted.iterdir()))


@pytest.mark.parametrize("field", ["data.train", "output", "model.weights", "manifest"])
@pytest.mark.parametrize(
    "address",
    [
        f"s3://bucket/some/where/?{QUERY}",
        f"https://host/some.where?{QUERY}",
        f"s3://me:{SEED}@b/x",
        f"some/where?{QUERY}",
        f"s3://bucket/some/where#{QUERY}",
    ],
)
def test_a_presigned_address_is_refused_and_not_repeated(
    run: Run, planted: Path, job: dict[str, Any], write: Write, field: str, address: str
) -> None:
    manifest = address
    if field != "manifest":
        section, _, name = field.partition(".")
        if name:
            job[section][name] = address
        else:
            job[section] = address
        manifest = write(job)
    ended = run("train", manifest)
    require_quiet(ended, 78)
    assert "address" in ended.err or "not supported" in ended.err
    if field in ("data.train", "model.weights"):
        assert not keys(open_store(job["output"]))


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "run", f"https://h/x?{QUERY}"),
        (f"https://h/x?{QUERY}",),
        ("train", "--nproc", f"https://h/x?{QUERY}", "job.yaml"),
    ],
)
def test_a_wrong_command_line_is_not_repeated(run: Run, arguments: tuple[str, ...]) -> None:
    require_quiet(run(*arguments), 2)


@pytest.mark.parametrize("endpoint", [f"me:{SEED}@host:9000", f"http://me:{SEED}/x@127.0.0.1:1"])
def test_an_endpoint_that_is_none_is_not_repeated(
    run: Run, endpoint: str, job: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    job["output"] = "s3://bucket/run/"
    ended = run("train", write(job))
    require_clean(ended.out, ended.err)
    assert ended.code in (69, 78), ended.err


@pytest.fixture
def silent_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An endpoint with a login, that nobody listens at."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SEED}@127.0.0.1:{free_port()}")
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "0.5")
    yield


def test_a_store_that_cannot_be_reached_is_named_without_its_login(
    run: Run, planted: Path, silent_store: None, job: dict[str, Any], write: Write
) -> None:
    job["output"] = "s3://bucket/run/"
    for command in ("train", "check"):
        ended = run(command, write(job))
        require_quiet(ended, 69)
        assert "127.0.0.1" in ended.err + ended.out


def test_credentials_of_a_file_stay_there(
    run: Run,
    remote: tuple[dict[str, Any], Store],
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    file.write_text(
        f"[default]\naws_access_key_id = AKIA{SEED}\naws_secret_access_key = secret{SEED}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    job, output = remote
    job["train"]["epochs"] = 1
    require_quiet(run("train", write(job)), 0)
    require_clean(*contents(output).values())
