"""A real control plane on this machine, and jobs on it made of the shipped files as a user would.

What is real and what is not: `machine/up.sh` builds and starts etcd, API server, controllers and
scheduler; `machine/kubelet.py` stands in for kubelets and runs the real `worker` behind tini in
namespaces of its own, and moto for the store.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.support.paths import ROOT

T = TypeVar("T")
Object = dict[str, Any]

MACHINE = Path(__file__).parent / "machine"
PLACE = Path(os.environ.get("WORKER_KUBE", Path.home() / ".cache" / "worker-kube"))
CONFIG = PLACE / "cfg" / "admin.kubeconfig"
NAMESPACE = "training"
IN_FABRIC = ("ip", "netns", "exec", "kube-fabric")
ENVIRONMENT = {
    "PRODUCT": str(ROOT),
    "WORKER_KUBE": str(PLACE),
    "WORKER_LOADER_THREADS": "1",
    "AWS_ENDPOINT_URL": "http://198.18.0.3:9000",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
}
CREDENTIALS = "[default]\naws_access_key_id = key\naws_secret_access_key = secret\n"


def run(*command: str, text: str | None = None, check: bool = True) -> str:
    """Run a command in the environment of the cluster; returns what it wrote."""
    done = subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ENVIRONMENT,
        cwd=ROOT,
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
    return done.stdout


def kubectl(*arguments: str, text: str | None = None, check: bool = True) -> str:
    """Run kubectl in the namespace of the jobs."""
    program = str(PLACE / "bin" / "kubectl")
    return run(program, "--kubeconfig", str(CONFIG), *arguments, text=text, check=check)


def get(kind: str, *arguments: str) -> Object:
    """Return an object, or a list of them; empty if there is none."""
    text = kubectl("-n", NAMESPACE, "get", kind, *arguments, "-o", "json", check=False)
    return dict(json.loads(text)) if text.startswith("{") else {}


def set_up() -> None:
    """Build and start what is not there, and make the namespace as docs/kubernetes.md says."""
    PLACE.mkdir(parents=True, exist_ok=True)
    run("bash", str(MACHINE / "up.sh"), "all")
    kubectl("create", "namespace", NAMESPACE, check=False)
    for mode in ("enforce", "warn"):
        label = f"pod-security.kubernetes.io/{mode}=restricted"
        kubectl("label", "namespace", NAMESPACE, label, "--overwrite")
    kubectl("apply", "-k", str(ROOT / "k8s/examples/namespace"))
    file = PLACE / "cfg" / "credentials"
    file.write_text(CREDENTIALS)
    secret = ("create", "secret", "generic", "s3-credentials", f"--from-file=credentials={file}")
    kubectl("-n", NAMESPACE, *secret, check=False)


def tear_down() -> None:
    """Stop everything, and forget all state but what was built."""
    run("bash", str(MACHINE / "up.sh"), "stop", check=False)


def put_manifest(name: str, **settings: str | int) -> None:
    """Put a job's manifest into the store; `settings` are those of `machine/seed.py`."""
    pairs = [f"{key}={value}" for key, value in settings.items()]
    _store("put", name, *pairs)


def put_text(bucket: str, key: str, text: str) -> None:
    """Put any text into the store."""
    _store("raw", bucket, key, text)


def stored(bucket: str, prefix: str) -> list[str]:
    """Return the objects of the store."""
    return list(json.loads(_store("ls", bucket, prefix)))


def _store(*arguments: str) -> str:
    python = str(ROOT / ".venv/bin/python")
    return run(*IN_FABRIC, python, str(MACHINE / "store.py"), *arguments)


def worker(*arguments: str) -> str:
    """Run the product's command beside the cluster, with the store in reach."""
    return run(*IN_FABRIC, str(ROOT / ".venv/bin/worker"), *arguments, check=False)


def apply(text: str) -> str:
    """Apply objects, and return what kubectl says."""
    return kubectl("apply", "-f", "-", text=text)


def wait_for(what: str, look: Callable[[], T], seconds: float = 300) -> T:
    """Return what a look gives once it gives anything."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found = look()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what} in {seconds} s; {kubectl('-n', NAMESPACE, 'get', 'pods')}")


def pods(job: str) -> list[Object]:
    """Return the pods of a job, those that have ended included, oldest first."""
    found: list[Object] = get("pods", "-l", f"job-name={job}").get("items", [])
    return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def running(job: str, container: str = "worker", count: int = 1) -> list[Object]:
    """Wait until so many pods of a job run a container, and return them."""

    def look() -> list[Object]:
        found = [pod for pod in pods(job) if _runs(pod, container)]
        return found if len(found) >= count else []

    return wait_for(f"{count} pods of {job} that run {container}", look)


def _runs(pod: Object, container: str) -> bool:
    status = pod.get("status", {})
    every = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
    runs = any(each["name"] == container and "running" in each["state"] for each in every)
    return runs and "deletionTimestamp" not in pod["metadata"]


def ended(job: str, seconds: float = 400, kind: str = "job") -> Object:
    """Wait until a job, or another kind, is complete or has failed; returns its status."""

    def look() -> Object:
        status: Object = get(kind, job).get("status", {})
        return status if conditions(status) & {"Complete", "Completed", "Failed"} else {}

    return wait_for(f"end of {job}", look, seconds)


def conditions(status: Object) -> set[str]:
    """Return the types of the conditions that are true."""
    return {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}


def reason(status: Object) -> str:
    """Return why a job has failed."""
    found = [c["reason"] for c in status["conditions"] if c["type"] in ("Failed", "FailureTarget")]
    return str(found[0]) if found else ""


def committed(run_name: str, at_least: int = 1) -> list[str]:
    """Wait for commits of a run."""

    def look() -> list[str]:
        found = stored("runs", f"{run_name}/commits/")
        return found if len(found) >= at_least else []

    return wait_for(f"commit of {run_name}", look)


def shown(kind: str, *arguments: str) -> str:
    """Return what `kubectl get` shows a person."""
    return kubectl("-n", NAMESPACE, "get", kind, *arguments, check=False)


def events(job: str) -> str:
    """Return the events of a job and its pods, as `kubectl get events` shows them."""
    return "\n".join(line for line in shown("events").splitlines() if f"/{job}" in line)


def name_of(pod: Object) -> str:
    """Return the name of a pod."""
    return str(pod["metadata"]["name"])


def evict(pod: Object) -> None:
    """Evict a pod by the eviction API, as a drain does."""
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name_of(pod), "namespace": NAMESPACE},
    }
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name_of(pod)}/eviction"
    kubectl("create", "--raw", path, "-f", "-", text=json.dumps(body))


def kill(pod: Object) -> None:
    """Kill a pod's worker hard, as the kernel does when memory runs out."""
    mark = f"{NAMESPACE}/{name_of(pod)} worker started pid "

    def started() -> list[str]:
        lines = (PLACE / "logs/kubelet.log").read_text().splitlines()
        return [line for line in lines if mark in line]

    # A pod runs from its first init container on.
    pid = wait_for(f"the worker of {name_of(pod)}", started)[-1].split(" pid ")[1].split()[0]
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), 9)


def control(state: str, node: object, *, on: bool = True) -> None:
    """Have a node lose its power (`dead`) or be removed (`removed`), or give it back."""
    mark = PLACE / "state" / "control" / f"{state}.{node}"
    mark.touch() if on else mark.unlink(missing_ok=True)
