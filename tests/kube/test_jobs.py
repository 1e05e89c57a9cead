"""Jobs, as docs/kubernetes.md describes them: exit codes, stops, delays, nodes that die."""

import time
from datetime import datetime

import pytest

from tests.kube import cluster as kube
from tests.kube.cluster import (
    Object,
    apply,
    committed,
    control,
    ended,
    evict,
    get,
    kill,
    kubectl,
    name_of,
    pods,
    put_manifest,
    running,
    stored,
    wait_for,
    worker,
)
from tests.kube.overlays import job_patch, overlay, spread
from tests.support.paths import ROOT

pytestmark = [pytest.mark.kube, pytest.mark.usefixtures("cluster")]

EXAMPLES = sorted(path.name for path in (ROOT / "k8s/examples").iterdir())
PAIR = ("multi-node", "credentials")
LONG = 25


def of_index(job: str, index: int) -> Object:
    """The pod of an index, once both run."""
    label = "batch.kubernetes.io/job-completion-index"
    found = running(job, count=2)
    return next(pod for pod in found if pod["metadata"]["annotations"][label] == str(index))


def require_exact(run: str) -> None:
    audit = worker("audit", f"s3://runs/{run}/")
    assert "0 lost, 0 repeated" in audit, audit


def require_new_pods(job: str, count: int, seconds: float) -> None:
    """Wait until all pods are new ones, the last of which follows the old ones' ends soon."""
    old = {name_of(pod) for pod in pods(job)}

    def second() -> list[Object]:
        found = [pod for pod in pods(job) if name_of(pod) not in old]
        return found if len(found) == count else []

    new = wait_for("second pods of all", second, 200)
    # The evicted one is gone by then.
    stopped = max(ended_at(pod) for pod in pods(job) if name_of(pod) in old)
    assert max(map(created, new)) - stopped < seconds


def created(pod: Object) -> float:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()


def ended_at(pod: Object) -> float:
    (status,) = pod["status"]["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 75
    return datetime.fromisoformat(status["state"]["terminated"]["finishedAt"]).timestamp()


@pytest.mark.parametrize(
    "example", [name for name in EXAMPLES if name not in ("jobset", "kueue", "trainjob")]
)
def test_a_server_takes_the_examples(example: str) -> None:
    path = str(ROOT / "k8s/examples" / example)
    said = kubectl("apply", "--dry-run=server", "--validate=strict", "-k", path)
    assert "Warning" not in said


def test_a_job_finishes_and_is_applied_again_after_its_deletion() -> None:
    put_manifest("done", epochs=2)
    text = overlay("done")
    apply(text)
    assert "Complete" in kube.conditions(ended("train-done"))
    assert "job.batch/train-done unchanged" in apply(text), "nothing happens"
    kubectl("-n", kube.NAMESPACE, "delete", "job", "train-done")
    apply(text)
    assert "Complete" in kube.conditions(ended("train-done"))
    assert "was completed by attempt 1" in kubectl("-n", kube.NAMESPACE, "logs", "job/train-done")
    assert len(stored("runs", "done/attempts/")) == 1


@pytest.mark.parametrize("how", ["delete", "evict"])
@pytest.mark.parametrize("container", ["check", "worker"])
def test_a_stop_is_not_counted_and_the_next_pod_resumes(container: str, how: str) -> None:
    name = f"{how}-{container}"
    put_manifest(name, epochs=LONG)
    apply(overlay(name, patches=[job_patch("{backoffLimit: 0}")]))
    if container == "worker":
        committed(name)
    (pod,) = running(f"train-{name}", container)
    time.sleep(1.5 if container == "check" else 0)  # until Python has its handlers
    if how == "evict":
        evict(pod)
    else:
        kubectl("-n", kube.NAMESPACE, "delete", "pod", name_of(pod), "--wait=false")
    status = ended(f"train-{name}", 600)
    assert "Complete" in kube.conditions(status)
    assert not status.get("failed")
    assert len(stored("runs", f"{name}/attempts/")) == (2 if container == "worker" else 1)
    require_exact(name)


EIGHT = """\
completions: 8
parallelism: 8
template:
  spec:
    initContainers: [{name: check, RESOURCES, env: [{name: WORKER_NODES, value: "8"}]}]
    containers: [{name: worker, RESOURCES, env: [{name: WORKER_NODES, value: "8"}]}]
""".replace("RESOURCES", "resources: {limits: {nvidia.com/gpu: 0}}")


def test_eight_pods_start_again_soon_after_an_eviction() -> None:
    """The delay is that of each pod alone, where one for all would be 10 minutes."""
    put_manifest("eight", epochs=10)
    apply(overlay("eight", PAIR, [job_patch("\n  " + EIGHT.replace("\n", "\n  "))]))
    committed("eight")
    evict(running("train-eight", count=8)[3])
    require_new_pods("train-eight", count=8, seconds=30)
    status = ended("train-eight", 900)
    assert "Complete" in kube.conditions(status)
    assert not status.get("failed")
    require_exact("eight")


def test_two_pods_find_each_other_and_one_is_evicted() -> None:
    put_manifest("pair", epochs=LONG)
    apply(overlay("pair", PAIR, [job_patch("{backoffLimitPerIndex: 0}"), spread("pair")]))
    committed("pair")
    evict(of_index("train-pair", 1))
    require_new_pods("train-pair", count=2, seconds=30)
    status = ended("train-pair", 700)
    assert "Complete" in kube.conditions(status)
    assert not status.get("failed")
    assert len(stored("runs", "pair/attempts/")) == 2
    require_exact("pair")


IPV6 = """\
apiVersion: batch/v1
kind: Job
metadata: {name: train}
spec: {template: {metadata: {labels: {ip-family: IPv6}}}}"""
BOTH = '{"spec": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}}'


def test_pods_with_ipv6_alone_find_each_other_and_are_scraped() -> None:
    put_manifest("six", epochs=LONG)
    kubectl("-n", kube.NAMESPACE, "patch", "service", "rendezvous", "-p", BOTH)
    apply(overlay("six", PAIR, [IPV6, spread("six")]))
    committed("six")
    first = of_index("train-six", 0)
    assert [each["ip"][:7] for each in first["status"]["podIPs"]] == ["fd00:18"]
    url = f"http://[{first['status']['podIP']}]:9400/metrics"
    assert 'worker_step{job="six"' in kube.run(*kube.IN_FABRIC, "curl", "-sg", url)
    log = kubectl("-n", kube.NAMESPACE, "logs", name_of(first), "-c", "check")
    assert f"train-six-0.rendezvous.training.svc.cluster.local is {first['status']['podIP']}" in log
    assert "Complete" in kube.conditions(ended("train-six", 700))
    require_exact("six")


def test_a_pod_of_two_is_killed_hard() -> None:
    put_manifest("hard", epochs=LONG)
    apply(overlay("hard", PAIR, [spread("hard")]))
    committed("hard")
    kill(of_index("train-hard", 1))
    status = ended("train-hard", 700)
    assert "Complete" in kube.conditions(status)
    assert status["failed"] == 2, "that pod, and the one that lost it"
    require_exact("hard")


def test_a_node_that_dies_has_to_be_removed(power: list[object]) -> None:
    put_manifest("node", epochs=LONG)
    apply(overlay("node", PAIR, [spread("node")]))
    committed("node")
    first = of_index("train-node", 0)
    node = first["spec"]["nodeName"]
    power.append(node)
    control("dead", node)
    wait_for("a pod that ends for ever", lambda: _is_terminating(first), 120)
    time.sleep(20)
    assert _is_terminating(first), "no new pod comes for it"
    assert len([pod for pod in pods("train-node") if name_of(pod).startswith("train-node-0-")]) == 1
    control("removed", node)
    kubectl("delete", "node", str(node))
    wait_for("its pod to be gone", lambda: not _is_terminating(first), 180)
    power.clear()
    for state in ("dead", "removed"):
        control(state, node, on=False)
    assert "Complete" in kube.conditions(ended("train-node", 900))
    require_exact("node")


def _is_terminating(pod: Object) -> bool:
    return "deletionTimestamp" in get("pod", name_of(pod)).get("metadata", {})
