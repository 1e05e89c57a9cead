"""CRDs, webhooks and controllers of JobSet, Kueue, Trainer; CRDs of the Prometheus operator.

    addons.py crds            all CRDs, from the modules in Go's cache
    addons.py start NAME...   jobset, trainer, kueue: webhooks and the controller, on 127.0.0.1

Names and versions of the modules are below; nothing of theirs is kept here.
"""

import base64
import copy
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

HERE = Path(__file__).parent
PLACE = Path(os.environ.get("WORKER_KUBE", Path.home() / ".cache" / "worker-kube"))
CFG, BIN, STATE, LOGS = (PLACE / name for name in ("cfg", "bin", "state", "logs"))
CACHE = Path(subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True).stdout.strip())
MODULES = {
    "jobset": ("sigs.k8s.io/jobset", "v0.11.1", "config/components/crd/bases", "config/components/webhook/manifests.yaml", 19443),
    "trainer": ("github.com/kubeflow/trainer/v2", "v2.2.0", "manifests/base/crds", "manifests/base/webhook/manifests.yaml", 19444),
    "kueue": ("sigs.k8s.io/kueue", "v0.17.0", "config/components/crd/bases", "config/components/webhook/manifests.yaml", 19445),
    "prometheus": ("github.com/prometheus-operator/prometheus-operator", "v0.92.1", "example/prometheus-operator-crd", None, 0),
}  # fmt: skip
# Of Kueue's webhooks those of kinds that are here.
KUEUE_KINDS = ("clusterqueue", "job.", "jobset", "resourceflavor", "workload.", "trainjob", "localqueue", "cohort")


def folder(name: str) -> Path:
    module, version = MODULES[name][:2]
    path = CACHE / f"{module}@{version}"
    if not path.exists():
        subprocess.run(["go", "mod", "download", f"{module}@{version}"], check=True, cwd="/tmp")
    return path


def kubectl(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(
        [BIN / "kubectl", "--kubeconfig", CFG / "admin.kubeconfig", *arguments], input=text, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"kubectl {arguments}: {done.stderr}")
    return done.stdout


def certificate() -> tuple[Path, str]:
    """A folder with tls.crt and tls.key for 127.0.0.1, and the bundle that vouches for it."""
    place = CFG / "webhook"
    if not (place / "tls.crt").exists():
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", place / "tls.key", "-out", place / "tls.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
    return place, base64.b64encode((place / "tls.crt").read_bytes()).decode()


def crds(names: list[str]) -> None:
    _, bundle = certificate()
    for name in names:
        port = MODULES[name][4]
        for path in sorted((folder(name) / MODULES[name][2]).glob("*.yaml")):
            if name == "prometheus":  # as they are; PyYAML cannot read the `=` in them
                if "podmonitors" in path.name or "prometheusrules" in path.name:
                    print(kubectl("apply", "--server-side", "-f", str(path)).strip())
                continue
            for found in yaml.safe_load_all(path.read_text()):
                if not found or found.get("kind") != "CustomResourceDefinition":
                    continue
                convertible = ("clusterqueues", "cohorts", "localqueues", "multikueueclusters", "workloads")  # as its kustomization has it
                if name == "kueue" and found["spec"]["names"]["plural"] in convertible:
                    found["spec"]["conversion"] = {"strategy": "Webhook", "webhook": {
                        "conversionReviewVersions": ["v1"],
                        "clientConfig": {"url": f"https://127.0.0.1:{port}/convert", "caBundle": bundle}}}  # fmt: skip
                print(kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=yaml.safe_dump(found)).strip())


def webhooks(name: str) -> None:
    _, bundle = certificate()
    port = MODULES[name][4]
    for found in yaml.safe_load_all((folder(name) / MODULES[name][3]).read_text()):
        found = copy.deepcopy(found)
        found["metadata"]["name"] = f"{name}-{found['metadata']['name']}"
        hooks = []
        for hook in found["webhooks"]:
            if name == "kueue" and not hook["name"][1:].startswith(KUEUE_KINDS):
                continue
            hook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{hook['clientConfig']['service']['path']}", "caBundle": bundle}
            if name == "jobset" and hook["name"] in ("mpod.kb.io", "vpod.kb.io"):
                hook["objectSelector"] = {"matchExpressions": [{"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}]}
            hooks.append(hook)
        found["webhooks"] = hooks
        print(kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=yaml.safe_dump(found)).strip())


def config(name: str, certs: Path) -> dict:
    port = MODULES[name][4]
    probe = f"127.0.0.1:{port + 100}"
    if name == "jobset":
        return {
            "apiVersion": "config.jobset.x-k8s.io/v1alpha1", "kind": "Configuration", "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False}, "webhook": {"port": port, "host": "127.0.0.1", "certDir": str(certs)},
            "metrics": {"bindAddress": "0"}, "health": {"healthProbeBindAddress": probe},
        }  # fmt: skip
    if name == "trainer":
        return {
            "apiVersion": "config.trainer.kubeflow.org/v1alpha1", "kind": "Configuration", "leaderElection": {"leaderElect": False},
            "certManagement": {"enable": False}, "webhook": {"port": port, "host": "127.0.0.1"},
            "metrics": {"bindAddress": "0", "secureServing": False}, "health": {"healthProbeBindAddress": probe},
        }  # fmt: skip
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2", "kind": "Configuration", "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False}, "webhook": {"port": port, "host": "127.0.0.1", "certDir": str(certs)},
        "metrics": {"bindAddress": "0"}, "health": {"healthProbeBindAddress": probe},
        "integrations": {"frameworks": ["batch/job", "jobset.x-k8s.io/jobset", "trainer.kubeflow.org/trainjob"]},
    }  # fmt: skip


def start(name: str) -> None:
    certs, _ = certificate()
    pid = STATE / f"{name}.pid"
    file = CFG / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config(name, certs)))
    # Trainer takes its certificates from the temporary folder.
    temporary = CFG / f"{name}-tmp"
    serving = temporary / "k8s-webhook-server/serving-certs"
    serving.mkdir(parents=True, exist_ok=True)
    for part in ("tls.crt", "tls.key"):
        (serving / part).write_bytes((certs / part).read_bytes())
    command = ["nice", "-n", "5", str(BIN / name), f"--config={file}"]
    if name == "kueue":
        command += ["--feature-gates=VisibilityOnDemand=false"]
        # It wants certificates for metrics at a fixed place: a copy of /etc in mounts of its own has them.
        command = ["unshare", "--mount", "sh", "-c",
                   f"mkdir -p {temporary}/etc && mount -t tmpfs t {temporary}/etc && cp -a /etc/. {temporary}/etc/ 2>/dev/null; "
                   f"mkdir -p {temporary}/etc/kueue/metrics/certs && cp {serving}/* {temporary}/etc/kueue/metrics/certs/ && "
                   f"mount --bind {temporary}/etc /etc && exec {' '.join(command)}"]  # fmt: skip
    with (LOGS / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "KUBECONFIG": str(CFG / "admin.kubeconfig"), "TMPDIR": str(temporary), "POD_NAMESPACE": "default"},
        )  # fmt: skip
    pid.write_text(str(process.pid))
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{MODULES[name][4] + 100}/readyz", timeout=2):
                break
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with {process.returncode}: {(LOGS / f'{name}.log').read_text()[-2000:]}") from None
            time.sleep(1)
    webhooks(name)
    print(name, "runs")


if __name__ == "__main__":
    if sys.argv[1] == "crds":
        crds(sys.argv[2:] or list(MODULES))
    else:
        for item in sys.argv[2:]:
            start(item)
