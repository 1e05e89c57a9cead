"""The shipped image, compose file and pods on a real Docker engine, against a real MinIO.

All tests with Docker are in this file, which one process runs: two engines cannot share the cache.
"""

import functools
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import boto3
import pytest
from ruamel.yaml import YAML

from bench.servers import wait_until
from tests.support.docker import CONTAINED, MINIO, WORKER, Docker
from tests.support.manifests import render_overlay
from tests.support.paths import ROOT
from tests.support.pods import Pod
from tests.support.processes import Job, Write

pytestmark = pytest.mark.e2e

GRACE = 30


def test_the_image_has_nothing_that_it_does_not_need(docker: Docker) -> None:
    found = docker.inspect(WORKER)
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"] == ["tini", "--", "worker"]
    labels = config["Labels"]
    assert re.fullmatch(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert f"WORKER_REVISION={labels['org.opencontainers.image.revision']}" in config["Env"]
    look = "for p in gcc cc g++ clang make git; do command -v $p; done; ls -A /root /tmp"
    as_root = ("run", "--rm", "--user=0", "--entrypoint=sh", WORKER, "-c")
    assert set(docker(*as_root, look, check=False).split()) <= {
        "/root:",
        "/tmp:",
        ".bashrc",
        ".profile",
    }
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in config["Env"]
    python = ("run", "--rm", "--entrypoint=python", WORKER, "-c")
    assert "No module named 'triton'" in docker(*python, "import triton", check=False)
    for line in docker("history", "--format", "{{.Size}} {{.CreatedBy}}", WORKER).splitlines():
        print(f"layer {line[:80]}")
    done = docker("run", "--rm", *CONTAINED, "--network=none", WORKER, "--version")
    assert done.startswith("worker, version")


def test_a_stopped_container_ends_with_75_and_its_successor_with_0(
    docker: Docker, tmp_path: Path
) -> None:
    """Read-only, without capabilities, and with no network but the store's."""
    docker("network", "create", "--internal", "store")
    keys = {"MINIO_ROOT_USER": "minio-key", "MINIO_ROOT_PASSWORD": "minio-secret"}
    secrets = [f"--env={name}={value}" for name, value in keys.items()]
    docker("run", "--detach", "--name=minio", "--network=store", *secrets, MINIO, "server", "/data")
    file = tmp_path / "env"
    file.write_text(
        "AWS_ENDPOINT_URL=http://minio:9000\nAWS_REGION=us-east-1\n"
        "AWS_ACCESS_KEY_ID=minio-key\nAWS_SECRET_ACCESS_KEY=minio-secret\n"
        f"WORKER_GRACE_SECONDS={GRACE}\n"
    )
    place = (*CONTAINED, "--tmpfs=/tmp", "--network=store", f"--env-file={file}")
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://{docker.address('minio')}:9000",
        aws_access_key_id="minio-key",
        aws_secret_access_key="minio-secret",
    )
    examples = f"--volume={ROOT}/examples/compose:/examples:ro"
    docker("run", *place, examples, "--entrypoint=python", WORKER, "/examples/buckets.py")

    docker("run", "--detach", "--name=first", *place, WORKER, "train", "s3://jobs/shapes.yaml")
    wait_until(
        lambda: s3.list_objects_v2(Bucket="runs", Prefix="shapes/commits/")["KeyCount"] >= 2,
        120,
        lambda: docker("logs", "first"),
    )
    docker("stop", f"--time={GRACE}", "first")  # killed after that time, it would be a 137
    assert docker.wait("first") == 75, docker("logs", "first")
    assert "stopped on request" in docker("logs", "first")
    assert not s3.list_objects_v2(Bucket="runs", Prefix="shapes/done.json")["KeyCount"]

    docker("run", "--detach", "--name=second", *place, WORKER, "train", "s3://jobs/shapes.yaml")
    assert docker.wait("second") == 0, docker("logs", "second")
    assert "resumes after step" in docker("logs", "second")
    done = json.loads(s3.get_object(Bucket="runs", Key="shapes/done.json")["Body"].read())
    assert (done["attempt"], done["step"]) == (2, 12 * 12)
    for name in ("first", "second"):
        assert docker("diff", name).strip() in ("", "C /tmp"), "something was written to the root"


def test_compiled_jobs_train_in_the_image_that_is_built_for_them(
    docker: Docker, dataset: Path, write: Write, job: Job, tmp_path: Path
) -> None:
    job["data"] |= {"train": "/data/train/", "val": "/data/val/"}
    job["output"] = "/tmp/run/"
    job["train"] |= {"epochs": 1, "compile": True}
    write(job)
    for folder in (tmp_path, dataset):
        folder.chmod(0o755)
    volumes = (f"--volume={dataset}:/data:ro", f"--volume={tmp_path}:/job:ro")
    place = ("run", "--rm", *CONTAINED, "--network=none", *volumes)
    command = ("train", f"/job/{job['job']}.yaml")
    refused = docker(*place, "--tmpfs=/tmp:exec", WORKER, *command, check=False)
    assert "train.compile: needs a compiler" in refused
    assert "--build-arg COMPILE=1" in refused
    docker.build(ROOT, "worker:compile", "--build-arg=COMPILE=1")
    refused = docker(*place, "--tmpfs=/tmp", "worker:compile", *command, check=False)
    assert "train.compile: /tmp is mounted noexec" in refused
    ended = docker(*place, "--tmpfs=/tmp:exec", "worker:compile", *command)
    assert "done: 5 steps" in ended
    triton = ("run", "--rm", "--entrypoint=python", "worker:compile", "-c", "import triton")
    docker(*triton)


def test_compose_trains_the_job_and_has_its_metrics(docker: Docker, tmp_path: Path) -> None:
    """All services but Grafana, of which there is no package."""
    images = {
        "WORKER_IMAGE": WORKER,
        "MINIO_IMAGE": MINIO,
        "PROMETHEUS_IMAGE": docker.build_stand_in(tmp_path / "p", "prometheus", "prometheus"),
        "PUSHGATEWAY_IMAGE": docker.build_stand_in(
            tmp_path / "g", "pushgateway", "prometheus-pushgateway"
        ),
    }
    compose = functools.partial(docker.compose, images)
    try:
        compose("up", "--detach", "--no-build", "worker")
        container = compose("ps", "--quiet", "worker").split()[-1]
        code = docker.wait(container)
        assert code == 0, compose("logs")[-6000:]
        inspected = docker.inspect(container)["HostConfig"]
        assert inspected["ReadonlyRootfs"]
        assert inspected["CapDrop"] == ["ALL"]
        last = "max by (job) (worker_step) == 144"
        found = wait_until(lambda: _query(last), 30, lambda: str(_query("worker_step")))
        assert [row["metric"] for row in found] == [{"job": "shapes"}]
        assert _query("worker_last_success_timestamp_seconds > 0")
    finally:
        compose("down", "--volumes")


def test_compose_publishes_on_loopback_only_and_holds_no_secret() -> None:
    text = (ROOT / "compose.yaml").read_text()
    services = YAML(typ="safe", pure=True).load(text)["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            secret = re.search("PASSWORD|SECRET|TOKEN|USER", name)
            assert not secret or str(value).startswith("/secrets/"), name
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), f"{name}: {source}"


def _query(query: str) -> list[dict[str, Any]]:
    address = f"http://127.0.0.1:9090/api/v1/query?query={urllib.request.quote(query)}"  # type: ignore[attr-defined]
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address) as answer:
        found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
        return found


def test_the_pods_of_a_job_find_each_other_and_finish(docker: Docker, tmp_path: Path) -> None:
    """Each index's template under Docker with what the controllers would give it."""
    docker("network", "create", "cluster")
    secrets = ("--env=MINIO_ROOT_USER=key", "--env=MINIO_ROOT_PASSWORD=long-secret")
    docker(
        *("run", "--detach", "--name=minio", "--network=cluster", *secrets, MINIO),
        *("server", "/data"),
    )
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "credentials").write_text(
        "[default]\naws_access_key_id=key\naws_secret_access_key=long-secret\n"
    )
    place = (
        *("--env=AWS_ENDPOINT_URL=http://minio:9000", "--env=AWS_ACCESS_KEY_ID=key"),
        *("--env=AWS_SECRET_ACCESS_KEY=long-secret", "--env=AWS_REGION=us-east-1"),
    )
    examples = f"--volume={ROOT}/examples/compose:/examples:ro"
    docker(
        *("run", *CONTAINED, "--tmpfs=/tmp", "--network=cluster", *place, examples),
        *("--entrypoint=python", WORKER, "/examples/buckets.py"),
    )
    objects = render_overlay(
        tmp_path,
        """
        namePrefix: team-
        namespace: training
        resources: [../../base]
        components: [../../components/multi-node, ../../components/credentials]
        images: [{name: worker, newTag: local}]
        patches:
          - patch: |
              apiVersion: v1
              kind: ConfigMap
              metadata: {name: settings}
              data: {MANIFEST: "s3://jobs/shapes.yaml", AWS_ENDPOINT_URL_S3: "http://minio:9000"}
        """.replace("\n        ", "\n"),
    )
    mounts = {"credentials": credentials}
    pods = [Pod(docker, objects, index, mounts) for index in range(2)]
    for pod in pods:
        pod.start("initContainers")
    codes = [pod.wait() for pod in pods]
    assert codes == [0, 0], [pod.log() for pod in pods]
    assert "2 in all, 16 images of each batch" in pods[0].log()
    for pod in pods:
        pod.start("containers")
    codes = [pod.wait() for pod in pods]
    assert codes == [0, 0], [pod.log() for pod in pods]
    assert '"world_size": 2' in pods[0].log() or "ranks: 2" in pods[0].log()
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://{docker.address('minio')}:9000",
        aws_access_key_id="key",
        aws_secret_access_key="long-secret",
    )
    assert s3.list_objects_v2(Bucket="runs", Prefix="shapes/done.json")["KeyCount"] == 1
