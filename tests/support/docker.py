"""A real Docker engine on this machine, and images made on it; `.ci/servers` puts it there.

No registry can be reached: the base image is made from Debian's packages, and images of other
projects in compose.yaml are stood in for by the same programs from this machine.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.servers import binary, note_real
from tests.support.paths import ROOT

BASE = "python:3.11-slim-bookworm"
WORKER, MINIO = "worker:local", "minio:local"
_CACHE = Path(os.environ.get("WORKER_CI_CACHE", Path.home() / ".cache/worker-ci"))
_CA = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
_SUBNET = "192.168.231.1/24"
# What `worker` images run with everywhere: compose.yaml, Kubernetes' restricted level.
CONTAINED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


@dataclass(frozen=True)
class Docker:
    """The engine."""

    environment: dict[str, str]

    def __call__(self, *arguments: str | Path, check: bool = True, **more: Any) -> str:
        """A docker command; returns its output."""
        return self._run([_client(), *map(str, arguments)], check, **more)

    def compose(self, env: dict[str, str], *arguments: str) -> str:
        """A command of Compose in the repository."""
        command = [binary("docker-compose"), *arguments]
        return self._run(command, check=True, cwd=ROOT, env={**self.environment, **env})

    def _run(self, command: list[str], check: bool, **more: Any) -> str:
        more = {"env": self.environment, **more}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-4000:]}"
        return done.stdout

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine knows of a container or an image."""
        found: list[dict[str, Any]] = json.loads(self("inspect", name))
        return found[0]

    def wait(self, name: str, seconds: float = 240) -> int:
        """The exit code of a container, once it has ended."""
        deadline = time.monotonic() + seconds
        while self.inspect(name)["State"]["Running"]:
            assert time.monotonic() < deadline, f"{name} still runs: {self('logs', name)}"
            time.sleep(0.2)
        code: int = self.inspect(name)["State"]["ExitCode"]
        return code

    def address(self, name: str) -> str:
        """The address of a container, as this machine reaches it."""
        networks = self.inspect(name)["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    def clean(self) -> None:
        """Remove containers, volumes and networks, whoever has left them."""
        left = self("ps", "--all", "--quiet", check=False).split()
        self("rm", "--force", "--volumes", *left, check=False)
        self("volume", "prune", "--force", check=False)
        self("network", "prune", "--force", check=False)

    def build_worker(self) -> str:
        """The shipped Dockerfile's image; returns what the build has printed."""
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        return self.build(ROOT, WORKER, f"--build-arg=REVISION={revision}")

    def build(self, context: Path, tag: str, *options: str) -> str:
        """Build an image; packages come through this machine's network and certificates."""
        secret = f"--secret=id=ca,src={_CA}"
        where = ("--network=host", "--progress=plain", secret, f"--tag={tag}")
        env = {**self.environment, "DOCKER_BUILDKIT": "1"}
        return self("build", *where, *options, context, env=env)

    def build_stand_in(self, folder: Path, name: str, program: str) -> str:
        """An image that runs one program of this machine; returns its tag."""
        folder.mkdir()
        shutil.copy(binary(program), folder / program)
        (folder / "Dockerfile").write_text(
            f'FROM {BASE}\nCOPY {program} /usr/bin/{program}\nENTRYPOINT ["{program}"]\n'
        )
        self.build(folder, f"{name}:local")
        return f"{name}:local"


@contextlib.contextmanager
def start_docker(folder: Path) -> Iterator[Docker]:
    """An engine of its own, whose images and layers last from one run of the tests to the next."""
    note_real("dockerd", "--version")
    note_real("docker-compose", "--version")
    archive = _CACHE / "python.tar"
    assert archive.exists(), f"{archive} is not there; run .ci/servers"
    socket = folder / "docker.sock"
    docker = Docker({**os.environ, "DOCKER_HOST": f"unix://{socket}"})
    daemon = _start_daemon(docker, folder, f"unix://{socket}")
    try:
        if not docker("images", "--quiet", BASE).strip():
            path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
            docker("import", "--change", path, archive, BASE)
        yield docker
    finally:
        docker.clean()
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
        subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True)


def _start_daemon(docker: Docker, folder: Path, host: str) -> subprocess.Popen[bytes]:
    """Start dockerd and return it once it responds."""
    command = [
        *(binary("dockerd"), f"--data-root={_CACHE}/docker", f"--host={host}"),
        *(f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--bip={_SUBNET}"),
    ]
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while "Server" not in docker("version", check=False):
        ended = daemon.poll() is not None or time.monotonic() > deadline
        assert not ended, (folder / "log").read_text()[-4000:]
        time.sleep(0.2)
    return daemon


def _client() -> str:
    """Debian's client, which has BuildKit built in; another one in front of it may not."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else binary("docker")
