"""Every row of docs/troubleshooting.md: the fault is made, and the message is the one promised."""

import contextlib
import datetime
import http.server
import re
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.paths import ROOT
from tests.support.processes import Job, Run, Write
from tests.support.proxy import proxy
from tests.support.sabotage import killed_while_reading
from worker.errors import WorkerError
from worker.launch.launchers import detect
from worker.launch.topology import require_divisible
from worker.store import open_store
from worker.store.client import renew_client, s3_client
from worker.store.error_kinds import IdentityError
from worker.store.error_messages import endpoint

PAGE = ROOT / "docs/troubleshooting.md"


@dataclass(frozen=True)
class Row:
    """A row of the page."""

    symptom: str
    message: str
    code: int

    @property
    def pattern(self) -> str:
        """What a message must match; `…` stands for anything."""
        return ".*".join(map(re.escape, self.message.split("…")))


def rows() -> list[Row]:
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and cells[2].isdecimal():
            found.append(Row(cells[0], cells[1].strip("`").strip(), int(cells[2])))
    return found


Environment = pytest.MonkeyPatch


def ask(uri: str = "s3://bucket/run/") -> tuple[int, str]:
    """The exit code and message of a look at an object."""
    renew_client()
    with contextlib.suppress(WorkerError, IdentityError):
        s3_client()  # which takes a busy machine longer than the deadlines below
    try:
        open_store(uri).get("x")
    except WorkerError as error:
        return error.code, str(error)
    finally:
        renew_client()
    raise AssertionError("nothing went wrong")


@contextlib.contextmanager
def serving(
    status: int = 200, body: bytes = b"", certificate: Path | None = None, **headers: str
) -> Iterator[int]:
    """A server on a port of loopback that answers all requests alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_CONNECT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost`, signed by itself, and its key beside it."""
    path = tmp_path_factory.mktemp("tls") / "store.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost -keyout {path.with_suffix('.key')} -out {path}",
        shell=True,
        check=True,
        capture_output=True,
    )
    return path


@pytest.fixture
def expired(tmp_path: Path) -> Path:
    """A certificate for `localhost` of years ago, and its key beside it."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    builder = builder.not_valid_before(datetime.datetime(2020, 1, 1))
    builder = builder.not_valid_after(datetime.datetime(2021, 1, 1))
    alternative = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    signed = builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    path = tmp_path / "expired.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return path


def error_body(code: str, more: str = "") -> bytes:
    return f"<Error><Code>{code}</Code><Message>no</Message>{more}</Error>".encode()


def answered(
    env: Environment,
    status: int,
    body: bytes = b"",
    uri: str = "s3://bucket/run/",
    **headers: str,
) -> tuple[int, str]:
    with serving(status, body, None, **headers) as port:
        env.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        return ask(uri)


def with_identity(env: Environment, sts: str, **variables: str | None) -> tuple[int, str]:
    """The outcome with a web identity instead of keys."""
    token = Path(tempfile.mkdtemp()) / "token"
    token.write_text(str(variables.pop("token", "ey.me.x")))
    return given(
        env,
        AWS_ACCESS_KEY_ID=None,
        AWS_SECRET_ACCESS_KEY=None,
        AWS_ENDPOINT_URL_STS=sts,
        AWS_WEB_IDENTITY_TOKEN_FILE=str(token),
        **{"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/worker", **variables},
    )


def by_file(env: Environment, secret: str, profile: str = "default") -> tuple[int, str]:
    """The outcome with keys from a file."""
    file = Path(tempfile.mkdtemp()) / "credentials"
    file.write_text(f"[{profile}]\naws_access_key_id = key\naws_secret_access_key = {secret}\n")
    return given(
        env,
        AWS_ACCESS_KEY_ID=None,
        AWS_SECRET_ACCESS_KEY=None,
        AWS_SHARED_CREDENTIALS_FILE=str(file),
        AWS_CONFIG_FILE="/nowhere",
    )


def by_config(env: Environment, text: str) -> tuple[int, str]:
    """The outcome with settings from the AWS config file."""
    file = Path(tempfile.mkdtemp()) / "config"
    file.write_text(text)
    return given(env, AWS_ENDPOINT_URL=None, AWS_CONFIG_FILE=str(file))


def by_agent(env: Environment, port: int) -> tuple[int, str]:
    """The outcome with credentials from an agent on the node."""
    env.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    return given(
        env,
        AWS_ACCESS_KEY_ID=None,
        AWS_SECRET_ACCESS_KEY=None,
        AWS_CONTAINER_CREDENTIALS_FULL_URI=f"http://127.0.0.1:{port}/v1/credentials",
    )


def by_refusing_agent(env: Environment) -> tuple[int, str]:
    with serving(403, b"AccessDenied") as port:
        return by_agent(env, port)


def by_sts(env: Environment, status: int, body: bytes, **variables: str) -> tuple[int, str]:
    with serving(status, body, None, **{"Content-Type": "text/xml"}) as port:
        return with_identity(env, f"http://127.0.0.1:{port}", **variables)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def given(env: Environment, **variables: str | None) -> tuple[int, str]:
    """The outcome with these variables set, or unset where None."""
    for name, value in variables.items():
        if value is None:
            env.delenv(name, raising=False)
        else:
            env.setenv(name, value)
    return ask()


def by_tls(env: Environment, certificate: Path, host: str, ca: str | None) -> tuple[int, str]:
    with serving(certificate=certificate) as port:
        return given(env, AWS_ENDPOINT_URL=f"https://{host}:{port}", AWS_CA_BUNDLE=ca)


def tls_without(env: Environment) -> tuple[int, str]:
    with serving() as port:
        return given(env, AWS_ENDPOINT_URL=f"https://127.0.0.1:{port}")


def redirected(env: Environment) -> tuple[int, str]:
    return answered(env, 301, Location="https://store.invalid/x")


def by_proxy(env: Environment, port: int, scheme: str = "http") -> tuple[int, str]:
    return given(
        env,
        AWS_ENDPOINT_URL="http://store.invalid:9000",
        HTTP_PROXY=f"{scheme}://127.0.0.1:{port}",
        http_proxy=None,
        NO_PROXY="",
        no_proxy=None,
    )


def by_locked_proxy(env: Environment) -> tuple[int, str]:
    with serving(407, b"<html>login") as port:
        return by_proxy(env, port)


def dripping(env: Environment, endpoint: str) -> tuple[int, str]:
    with proxy(endpoint) as server:
        server.plan = lambda request: "drip head"
        return given(env, AWS_ENDPOINT_URL=server.endpoint, WORKER_STORE_DEADLINE_SECONDS="6")


def unset_endpoint(env: Environment) -> tuple[int, str]:
    """AWS by way of a proxy that is not there, as tests reach no network."""
    env.setattr("worker.store.s3.s3_client", _Unreachable)
    return given(env, AWS_ENDPOINT_URL=None)


class _Unreachable:
    def get_object(self, **_: object) -> None:
        raise EndpointConnectionError(endpoint_url="https://s3", error="Failed to resolve")


def skewed(env: Environment) -> tuple[int, str]:
    later = formatdate(time.time() + 3600, usegmt=True)
    return answered(env, 403, error_body("RequestTimeTooSkewed"), Date=later)


Fault = Callable[[Environment], tuple[int, str]]
STORE: dict[str, Fault] = {
    "nothing listens at the endpoint": lambda env: given(
        env, AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}"
    ),
    "the endpoint's name is unknown": lambda env: given(
        env, AWS_ENDPOINT_URL="http://store.invalid:9000"
    ),
    "the endpoint has no scheme": lambda env: given(env, AWS_ENDPOINT_URL="minio:9000"),
    "quotation marks around the endpoint": lambda env: given(
        env, AWS_ENDPOINT_URL='"http://minio:9000"'
    ),
    "an IPv6 endpoint without brackets": lambda env: given(
        env, AWS_ENDPOINT_URL="http://fd00::1:9000"
    ),
    "a line break at the end of the endpoint": lambda env: given(
        env, AWS_ENDPOINT_URL="http://minio:9000\n"
    ),
    "the port of a web console": lambda env: answered(
        env,
        400,
        b"<Error><Code>InvalidArgument</Code>"
        b"<Message>S3 API Requests must be made to API port.</Message></Error>",
    ),
    "`AWS_ENDPOINT_URL` is not set": unset_endpoint,
    "something that is not S3 at all": lambda env: answered(
        env, 200, b"<!doctype html>", **{"Content-Type": "text/html", "Transfer-Encoding": "x"}
    ),
    "an endpoint that redirects": redirected,
    "`http://` for an endpoint that uses TLS": lambda env: answered(
        env, 400, b"Client sent an HTTP request to an HTTPS server.\n"
    ),
    "`https://` for an endpoint without TLS": tls_without,
    "`AWS_CA_BUNDLE` names no file (and the endpoint is https)": lambda env: given(
        env, AWS_CA_BUNDLE="/nowhere/ca.pem", AWS_ENDPOINT_URL="https://127.0.0.1:9"
    ),
    "a proxy that is not there": lambda env: by_proxy(env, free_port()),
    "a proxy that wants a login": by_locked_proxy,
    "a proxy of another kind": lambda env: by_proxy(env, free_port(), "socks5"),
    "no credentials": lambda env: given(
        env, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, HOME="/nowhere"
    ),
    "a name that no bucket may have": lambda env: answered(env, 400, uri="s3://My_Data/run/"),
    "a bucket in the endpoint": lambda env: given(env, AWS_ENDPOINT_URL="http://minio:9000/runs"),
    "an underscore in the endpoint's name": lambda env: given(
        env, AWS_ENDPOINT_URL="http://my_minio:9000"
    ),
    "an endpoint from the AWS config file": lambda env: by_config(
        env, f"[default]\nendpoint_url = http://127.0.0.1:{free_port()}\n"
    ),
    "`AWS_CA_BUNDLE` names a folder": lambda env: given(
        env, AWS_CA_BUNDLE="/etc/ssl", AWS_ENDPOINT_URL="https://127.0.0.1:9"
    ),
    "an AWS variable with a value that boto3 refuses": lambda env: given(
        env, AWS_RETRY_MODE="fast"
    ),
    "an empty profile": lambda env: given(env, AWS_PROFILE=""),
    "a profile that does not exist": lambda env: given(env, AWS_PROFILE="nobody"),
    "a token without a role": lambda env: with_identity(env, "http://sts:1", AWS_ROLE_ARN=""),
    "the agent that gives credentials to pods (EKS Pod Identity) is out of reach": lambda env: (
        by_agent(env, free_port())
    ),
    "that agent refuses": by_refusing_agent,
    "a secret that is empty in a credentials file": lambda env: by_file(env, ""),
    "a credentials file without a default profile": lambda env: by_file(env, "x", "lab"),
    "half of the credentials": lambda env: given(env, AWS_SECRET_ACCESS_KEY=None),
    "a line break at the end of a key": lambda env: given(env, AWS_SECRET_ACCESS_KEY="secret\r\n"),
    "a blank at the end of the region": lambda env: given(env, AWS_REGION="us-east-1 "),
    "an unknown key": lambda env: answered(env, 403, error_body("InvalidAccessKeyId")),
    "a session token left over from other keys": lambda env: answered(
        env, 403, error_body("InvalidTokenId")
    ),
    "a wrong secret": lambda env: answered(env, 403, error_body("SignatureDoesNotMatch")),
    "a web server at the endpoint, not S3": lambda env: answered(
        env, 404, b"<html><body>nothing here<hr></body></html>", **{"Content-Type": "text/html"}
    ),
    "AWS STS, which gives out credentials, is out of reach": lambda env: with_identity(
        env, f"http://127.0.0.1:{free_port()}"
    ),
    "the endpoint of STS has no scheme": lambda env: with_identity(env, "sts:9000"),
    "something other than STS": lambda env: by_sts(env, 404, b"<!doctype html><p>nothing here"),
    "a role that the token may not assume": lambda env: by_sts(
        env, 403, b"<ErrorResponse>" + error_body("AccessDenied") + b"</ErrorResponse>"
    ),
    "a line break at the end of the role": lambda env: with_identity(
        env, "http://127.0.0.1:9", AWS_ROLE_ARN="arn:aws:iam::123456789012:role/worker\n"
    ),
    "an empty token": lambda env: with_identity(env, "http://127.0.0.1:9", token=""),
    "a missing permission": lambda env: answered(env, 403, error_body("AccessDenied")),
    "credentials that have expired": lambda env: answered(env, 400, error_body("ExpiredToken")),
    "the wrong region, on a store that has one": lambda env: answered(
        env,
        400,
        error_body("AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>"),
    ),
    "a clock that is wrong": skewed,
    "a bucket that is not there": lambda env: given(env),
    "a gateway that cannot reach the store behind it": lambda env: answered(env, 522),
    "a store that is full": lambda env: answered(env, 507, error_body("XMinioStorageFull")),
}


def place(**env: str) -> tuple[int, str]:
    """How ranks are told their places from an environment."""
    try:
        detect(env, 0, None, own_name=lambda: "train-1")
    except WorkerError as error:
        return error.code, str(error)
    raise AssertionError("nothing went wrong")


def shared_batch() -> tuple[int, str]:
    try:
        require_divisible(12, 5)
    except WorkerError as error:
        return error.code, str(error)
    raise AssertionError("nothing went wrong")


PLACES: dict[str, Callable[[], tuple[int, str]]] = {
    "a batch not divisible by the ranks": shared_batch,
    "`RANK` without torchrun": lambda: place(RANK="0"),
    "a Slurm script without `srun`": lambda: place(SLURM_JOB_ID="7", SLURM_NTASKS="4"),
    "an Indexed Job without its size": lambda: place(JOB_COMPLETION_INDEX="1"),
    "a pod without a name that the others can resolve": lambda: place(
        JOB_COMPLETION_INDEX="1", WORKER_NODES="2"
    ),
    "an elastic range of nodes": lambda: place(PET_NNODES="1:4"),
}
ELSEWHERE = {
    "a certificate of an unknown authority",
    "a certificate of another name",
    "a certificate that has expired",
    "a CA file that holds no certificate",
    "a response that never completes",
    "two writers are not kept apart",
    "a node that never joins",
    "the rendezvous port is taken",
    "another job's output",
    "a changed setting that must stay the same",
    "a rank that was killed",
}
"""Rows with a test of their own below."""
ROWS = {row.symptom: row for row in rows()}


def test_a_role_may_come_from_a_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("ey.me.x")
    (tmp_path / "config").write_text(
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/worker\n"
        f"web_identity_token_file = {tmp_path}/token\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    code, message = with_identity(monkeypatch, f"http://127.0.0.1:{free_port()}", AWS_ROLE_ARN=None)
    assert code == 69
    assert "its token cannot be exchanged" in message


def test_configured_endpoints_may_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert endpoint() == "AWS's own S3 (AWS_IGNORE_CONFIGURED_ENDPOINT_URLS is set)"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "false")
    assert endpoint() == "http://127.0.0.1:1"


def require(symptom: str, code: int, message: str) -> None:
    row = ROWS[symptom]
    assert re.search(row.pattern, message), message
    assert len(message.splitlines()) == 1
    assert code == row.code


def test_every_row_has_a_test() -> None:
    assert ROWS.keys() == STORE.keys() | PLACES.keys() | ELSEWHERE


@pytest.mark.parametrize("symptom", STORE)
def test_a_symptom_of_storage(symptom: str, aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "4")
    require(symptom, *STORE[symptom](monkeypatch))


@pytest.mark.parametrize("symptom", PLACES)
def test_a_symptom_of_a_place(symptom: str) -> None:
    require(symptom, *PLACES[symptom]())


def test_symptoms_of_certificates(
    monkeypatch: pytest.MonkeyPatch, certificate: Path, expired: Path
) -> None:
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "20")
    require(
        "a certificate of an unknown authority",
        *by_tls(monkeypatch, certificate, "localhost", None),
    )
    require(
        "a certificate of another name",
        *by_tls(monkeypatch, certificate, "127.0.0.1", str(certificate)),
    )
    require(
        "a certificate that has expired",
        *by_tls(monkeypatch, expired, "localhost", str(expired)),
    )
    require(
        "a CA file that holds no certificate",
        *by_tls(monkeypatch, certificate, "localhost", str(certificate.with_suffix(".key"))),
    )


def test_a_symptom_of_slow_networks(monkeypatch: pytest.MonkeyPatch, s3_endpoint: str) -> None:
    require("a response that never completes", *dripping(monkeypatch, s3_endpoint))


def test_an_endpoint_by_its_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked, and told of as it was given."""
    code, message = given(monkeypatch, AWS_ENDPOINT_URL=f"http://[::1]:{free_port()}")
    assert code == 69
    assert re.search(r"http://\[::1\]:\d+ cannot be reached", message)


@pytest.mark.parametrize(
    "value",
    [
        "minio",
        "://x",
        "ftp://minio",
        "http://",
        "http://:9",
        "http://a:b",
        "http://u:p@m:x",
        "u:p/@m",
    ],
)
def test_an_endpoint_that_is_none_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, message = given(monkeypatch, AWS_ENDPOINT_URL=value)
    assert code == 78
    assert message.startswith("AWS_ENDPOINT_URL: ")
    assert "u:p" not in message


def test_a_secret_is_not_told_with_what_is_wrong_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("hunter2\n", "hunter2\x00"[:-1] + " ", "hünter2", "\thunter2"):
        code, message = given(monkeypatch, AWS_SECRET_ACCESS_KEY=value)
        assert code == 78
        assert message.startswith("AWS_SECRET_ACCESS_KEY: ")
        assert "nter2" not in message


def test_a_symptom_of_a_store_without_conditional_writes(
    monkeypatch: pytest.MonkeyPatch,
    s3_endpoint: str,
    bucket: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with proxy(s3_endpoint) as server:
        server.plan = lambda request: "501" if request.conditional else None
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        renew_client()
        assert open_store(bucket).put_if_absent("x", b"1")
        renew_client()
    require("two writers are not kept apart", 0, caplog.messages[-1])


def last(ended: Any) -> str:
    return str(ended.events[-1]["message"])


def test_symptoms_of_ranks_that_do_not_meet(
    run: Run, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    for name, value in {
        "WORKER_NODES": "2",
        "JOB_COMPLETION_INDEX": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORKER_RENDEZVOUS_SECONDS": "2",
    }.items():
        monkeypatch.setenv(name, value)
    ended = run("train", write(job))
    require("a node that never joins", ended.code, last(ended))
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
        ended = run("train", write(job))
    require("the rendezvous port is taken", ended.code, last(ended))


def test_a_symptom_of_two_jobs_on_one_output(run: Run, write: Write, job: Job) -> None:
    assert run("train", write(job)).code == 0
    ended = run("train", write({**job, "job": "another"}))
    require("another job's output", ended.code, last(ended))
    job["data"]["image_size"] = 48
    ended = run("train", write(job))
    require("a changed setting that must stay the same", ended.code, last(ended))


def test_a_symptom_of_memory_that_runs_out(run: Run, write: Write, job: Job) -> None:
    ended = run("train", write(job), "--nproc", "2", sabotage=killed_while_reading)
    told = [event["message"] for event in ended.events if "was killed" in event["message"]]
    require("a rank that was killed", ended.code, told[0])
