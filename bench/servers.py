"""MinIO, and how to wait for any server; `.ci/servers` puts the programs on the machine."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

START_SECONDS = 90.0


@dataclass(frozen=True)
class Server:
    """A server on loopback: what leads `worker` and boto3 there."""

    endpoint: str
    environment: dict[str, str]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def two_free_ports() -> int:
    """Return a port that nobody listens on, nor on the next one."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


def binary(name: str) -> str:
    """Return the path of a server's program."""
    cache = Path(os.environ.get("WORKER_CI_CACHE", Path.home() / ".cache/worker-ci"))
    found = shutil.which(name, path=f"{cache}/bin:{os.environ['PATH']}:/usr/sbin")
    if not found:
        raise FileNotFoundError(f"{name} is not on this machine; run .ci/servers")
    return found


REAL: dict[str, str] = {}
"""What has run for real in this session, as it names itself; shown at its end."""


def note_real(program: str, *arguments: str) -> None:
    """Note a real component by what it says when called with `arguments`."""
    done = subprocess.run([binary(program), *arguments], capture_output=True, text=True)
    REAL[program] = (done.stdout or done.stderr).strip().splitlines()[0]


@contextlib.contextmanager
def start_minio(folder: Path) -> Iterator[Server]:
    """MinIO over http."""
    note_real("minio", "--version")
    port = free_port()
    secrets = {"MINIO_ROOT_USER": "minio-key", "MINIO_ROOT_PASSWORD": "minio-secret"}
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            binary("nice"),
            "-n",
            "19",
            binary("minio"),
            "server",
            "--quiet",
            "--address",
            f"127.0.0.1:{port}",
            folder / "data",
        ],
        env={**os.environ, **secrets, "MINIO_BROWSER": "off"},
        stdout=log,
        stderr=log,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/minio/health/live", folder / "log")
        yield server_at(f"http://127.0.0.1:{port}", *secrets.values())
    finally:
        process.terminate()
        process.wait(20)


def wait_until(look: Callable[[], T | None], seconds: float, tell: Callable[[], str]) -> T:
    """Look until something true is seen, and return it; `tell` says what was seen instead."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {seconds} s: {tell()}")
        time.sleep(0.2)


def wait_for(url: str, log: Path, certificate: Path | None = None) -> None:
    """Wait until a server answers."""
    import ssl

    context = ssl.create_default_context(cafile=str(certificate)) if certificate else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            opener.open(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            text = log.read_text()[-2000:] if log.exists() else ""
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} does not answer: {text}") from None
            time.sleep(0.1)


def server_at(endpoint: str, key: str, secret: str) -> Server:
    return Server(
        endpoint,
        {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "WORKER_STORE_DEADLINE_SECONDS": "20",
        },
    )
