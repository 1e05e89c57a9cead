"""Rendered Kubernetes manifests, and the rules for them that only an API server would enforce."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from bench.servers import binary, note_real
from tests.support.paths import ROOT

EXAMPLES = sorted(path.parent.name for path in ROOT.glob("k8s/examples/*/kustomization.yaml"))
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
FATAL, STOPPED = {2, 65, 76, 78}, {75}

Object = dict[str, Any]


def render(folder: Path) -> list[Object]:
    """What `kustomize build` makes of a folder."""
    note_real("kustomize", "version")
    done = subprocess.run(
        [binary("kustomize"), "build", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(YAML(typ="safe", pure=True).load_all(done.stdout))


def render_overlay(folder: Path, overlay: str) -> list[Object]:
    """What an overlay of a user's own gives, written beside a copy of `k8s/`."""
    shutil.copytree(ROOT / "k8s", folder / "k8s", dirs_exist_ok=True)
    mine = folder / "k8s/examples/mine"
    mine.mkdir(exist_ok=True)
    (mine / "kustomization.yaml").write_text(overlay)
    return render(mine)


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [found for found in objects if found["kind"] == kind]


def job_specs(objects: list[Object]) -> list[tuple[str, Object]]:
    """Every Job that would come of it: its name, which pods get theirs from, and its spec."""
    found = [(job["metadata"]["name"], job["spec"]) for job in of_kind(objects, "Job")]
    for owner in of_kind(objects, "JobSet"):
        name = owner["metadata"]["name"]
        for part in owner["spec"]["replicatedJobs"]:
            found.append((f"{name}-{part['name']}-0", part["template"]["spec"]))
    for owner in of_kind(objects, "TrainingRuntime"):
        for part in owner["spec"]["template"]["spec"]["replicatedJobs"]:
            found.append((f"train-{part['name']}-0", part["template"]["spec"]))
    return found


def violations(objects: list[Object]) -> list[str]:
    """What an API server would refuse, or a cluster not run: Jobs, pods, names that must fit.

    Unless they hold it themselves, with what the namespace has been given before.

    From the references of batch/v1, https://kubernetes.io/docs/concepts/workloads/controllers/job/
    and the Pod Security Standards; not compared with a server.
    """
    found: list[str] = []
    if not of_kind(objects, "ServiceAccount"):
        objects = objects + render(ROOT / "k8s/examples/namespace")
    for name, spec in job_specs(objects):
        found += [f"{name}: {text}" for text in _job_violations(name, spec)]
        found += [f"{name}: {text}" for text in _pod_violations(spec["template"]["spec"])]
        found += [f"{name}: {text}" for text in _reference_violations(spec, objects)]
    return found


def _job_violations(name: str, spec: Object) -> list[str]:
    found = []
    pod, policy = spec["template"]["spec"], spec["podFailurePolicy"]
    if pod.get("restartPolicy") != "Never":
        found.append("podFailurePolicy needs restartPolicy Never")
    if spec.get("podReplacementPolicy") != "Failed":
        found.append("podFailurePolicy needs podReplacementPolicy Failed")
    if not 0 < len(policy["rules"]) <= 20:
        found.append("podFailurePolicy has 1 to 20 rules")
    if "backoffLimitPerIndex" in spec and "backoffLimit" in spec:
        found.append("pods are counted either each or all together")
    if "backoffLimitPerIndex" in spec and spec.get("completionMode") != "Indexed":
        found.append("backoffLimitPerIndex needs completionMode Indexed")
    names = [c["name"] for c in [*pod["containers"], *pod.get("initContainers", [])]]
    for rule in policy["rules"]:
        found += _rule_violations(rule, names)
    if spec.get("completions", 1) != spec.get("parallelism", 1):
        found.append("all pods of a job have to run at once")
    longest = f"{name}-{spec.get('completions', 1) - 1}"
    if len(longest) > 63 or not _LABEL.fullmatch(longest):
        found.append(f"{longest} is no DNS label")
    return found


def _rule_violations(rule: Object, names: list[str]) -> list[str]:
    found = []
    if ("onExitCodes" in rule) == ("onPodConditions" in rule):
        found.append("a rule has either exit codes or conditions")
    codes = rule.get("onExitCodes", {})
    values = codes.get("values", [])
    if codes.get("operator") == "In" and 0 in values:
        found.append("0 cannot be In a rule")
    if values != sorted(set(values)):
        found.append("exit codes are ordered and unique")
    if codes.get("containerName", names[0]) not in names:
        found.append(f"no container {codes['containerName']}")
    if rule["action"] == "FailIndex":
        found.append("FailIndex needs backoffLimitPerIndex")
    return found


def _pod_violations(pod: Object) -> list[str]:
    """The restricted level of the Pod Security Standards, and a root that is read-only."""
    found = []
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        found.append("runs as root")
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    if pod.get("automountServiceAccountToken", True):
        found.append("has a token of the API that it does not need")
    if any(set(v) & {"hostPath", "nfs"} for v in pod.get("volumes", [])):
        found.append("mounts a path of the node")
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation", True) or not own.get("readOnlyRootFilesystem"):
            found.append(f"{container['name']}: not contained")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            found.append(f"{container['name']}: keeps capabilities")
        if not {"cpu", "memory"} <= set(container["resources"]["limits"]):
            found.append(f"{container['name']}: no limits")
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        if not mounts <= volumes:
            found.append(f"{container['name']}: mounts {mounts - volumes}, which is no volume")
    return found


def _reference_violations(spec: Object, objects: list[Object]) -> list[str]:
    """Names and numbers that have to fit each other, whatever prefix they were given."""
    pod = spec["template"]["spec"]
    names = {(o["kind"], o["metadata"]["name"]) for o in objects}
    wanted = [("ServiceAccount", pod["serviceAccountName"])]
    found = _service_violations(spec, objects) if "subdomain" in pod else []
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        wanted += [("ConfigMap", s["configMapRef"]["name"]) for s in container["envFrom"]]
        settings = {e["name"]: e.get("value") for e in container.get("env", [])}
        nodes, grace = settings.get("WORKER_NODES"), settings.get("WORKER_GRACE_SECONDS")
        if nodes is not None and int(nodes) != spec.get("completions"):
            found.append(f"WORKER_NODES is {nodes}, completions {spec.get('completions')}")
        if grace is not None and int(grace) != pod["terminationGracePeriodSeconds"]:
            found.append("WORKER_GRACE_SECONDS is not terminationGracePeriodSeconds")
    return found + [f"no {kind} {name}" for kind, name in wanted if (kind, name) not in names]


def _service_violations(spec: Object, objects: list[Object]) -> list[str]:
    subdomain = spec["template"]["spec"]["subdomain"]
    services = {o["metadata"]["name"]: o["spec"] for o in of_kind(objects, "Service")}
    service = services.get(subdomain)
    if service is None:
        return [f"no Service {subdomain}"]
    labels = spec["template"]["metadata"]["labels"]
    if service["clusterIP"] != "None" or not service.get("publishNotReadyAddresses"):
        return ["its Service gives no names to pods that start"]
    if not set(service["selector"].items()) <= set(labels.items()):
        return ["its Service does not select its pods"]
    return []
