"""Jobs, as docs/kubernetes.md describes them: exit codes, stops, delays, nodes that die."""

import time
from collections.abc import Iterator
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
    job_patch,
    kill,
    kubectl,
    name_of,
    overlay,
    pods,
    put_manifest,
    reason,
    running,
    stored,
    wait_for,
    worker,
)
from tests.support.paths import ROOT

pytestmark = [pytest.mark.kube, pytest.mark.usefixtures("cluster")]

EXAMPLES = sorted(path.name for path in (ROOT / "k8s/examples").iterdir())
PAIR = ("multi-node", "credentials")
LONG = 25
SMALL = "resources: {limits: {nvidia.com/gpu: 0}, requests: {cpu: 100m, memory: 1Mi}}"
SPREAD = """
template:
  spec:
    affinity:
      podAntiAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          - topologyKey: kubernetes.io/hostname
            labelSelector: {matchLabels: {batch.kubernetes.io/job-name: train-NAME}}
"""


def shell(worker_command: str, check_command: str = "true") -> str:
    """Pods that run shell commands in place of the worker, under its own podFailurePolicy."""
    return (
        "template: {spec: {"
        f"initContainers: [{{name: check, command: [sh, -c], args: ['{check_command}'], {SMALL}}}], "
        f"containers: [{{name: worker, command: [sh, -c], args: ['{worker_command}'], {SMALL}}}]}}}}"
    )


def spread(name: str) -> str:
    """A patch that puts each pod on a node of its own, as GPUs would have it."""
    body = SPREAD.replace("NAME", name).replace("\n", "\n  ")
    return f"apiVersion: batch/v1\nkind: Job\nmetadata: {{name: train}}\nspec:{body}"


def of_index(job: str, index: int) -> Object:
    """The pod of an index, once both run."""
    label = "batch.kubernetes.io/job-completion-index"
    found = running(job, count=2)
    return next(pod for pod in found if pod["metadata"]["annotations"][label] == str(index))


def require_exact(run: str) -> None:
    audit = worker("audit", f"s3://runs/{run}/")
    assert "0 lost, 0 repeated" in audit, audit


def created(pod: Object) -> float:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()


@pytest.mark.parametrize(
    "example", [name for name in EXAMPLES if name in ("namespace", "one-pod", "multi-node")]
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


@pytest.mark.parametrize("where", ["worker", "check"])
@pytest.mark.parametrize("code", [2, 65, 76, 78])
def test_a_code_that_another_run_would_not_change_fails_the_job(code: int, where: str) -> None:
    name = f"{where[0]}{code}"
    commands = (f"exit {code}", "true") if where == "worker" else ("true", f"exit {code}")
    apply(overlay(name, patches=[job_patch(f"{{{shell(*commands)}}}")]))
    assert reason(ended(f"train-{name}", 90)) == "PodFailurePolicy"
    assert len(pods(f"train-{name}")) == 1


@pytest.mark.parametrize("code", [69, 70, 137])
def test_a_failure_is_counted(code: int) -> None:
    patch = job_patch(f"{{backoffLimit: 0, {shell(f'exit {code}')}}}")
    apply(overlay(f"f{code}", patches=[patch]))
    assert reason(ended(f"train-f{code}", 90)) == "BackoffLimitExceeded"


def test_a_failure_of_one_of_several_pods_too_often_fails_the_job() -> None:
    patch = job_patch(f"{{backoffLimitPerIndex: 1, {shell('exit 69')}}}")
    apply(overlay("often", ["multi-node"], [patch]))
    assert reason(ended("train-often", 120)) == "MaxFailedIndexesExceeded"


def test_a_wrong_manifest_is_found_by_check() -> None:
    put_manifest("wrong", epochs=2, more_data="color: blue")
    apply(overlay("wrong"))
    assert reason(ended("train-wrong", 180)) == "PodFailurePolicy"
    (pod,) = pods("train-wrong")
    (status,) = pod["status"]["initContainerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 78
    logs = kubectl("-n", kube.NAMESPACE, "logs", name_of(pod), "-c", "check")
    assert "data.color: unknown key" in logs


def test_a_missing_secret_keeps_the_pod_from_starting() -> None:
    put_manifest("secret", epochs=1)
    patch = """\
apiVersion: batch/v1
kind: Job
metadata: {name: train}
spec: {template: {spec: {volumes: [{name: credentials, secret: {secretName: not-there}}]}}}"""
    apply(overlay("secret", patches=[patch]))
    listing = ("-n", kube.NAMESPACE, "get", "pods", "-l", "job-name=train-secret")
    wait_for("a pod that waits for its Secret", lambda: "Init:0/1" in kubectl(*listing), 60)
    time.sleep(10)
    assert "Init:0/1" in kubectl(*listing), "it waits on"


@pytest.mark.parametrize("how", ["delete", "evict"])
@pytest.mark.parametrize("container", ["check", "worker"])
def test_a_stop_is_not_counted_and_the_next_pod_resumes(container: str, how: str) -> None:
    name = f"{how}-{container}"
    put_manifest(name, epochs=LONG)
    apply(overlay(name, patches=[job_patch("{backoffLimit: 0}")]))
    if container == "worker":
        committed(name)
    (pod,) = running(f"train-{name}", container)
    time.sleep(3 if container == "check" else 0)  # until Python has its handlers
    if how == "evict":
        evict(pod)
    else:
        kubectl("-n", kube.NAMESPACE, "delete", "pod", name_of(pod), "--wait=false")
    status = ended(f"train-{name}", 600)
    assert "Complete" in kube.conditions(status)
    assert not status.get("failed")
    assert len(stored("runs", f"{name}/attempts/")) == (2 if container == "worker" else 1)
    require_exact(name)


def test_a_deadline_ends_a_job_for_good_and_it_resumes_once_deleted() -> None:
    put_manifest("late", epochs=60)
    text = overlay("late", patches=[job_patch("{activeDeadlineSeconds: 45}")])
    apply(text)
    assert reason(ended("train-late", 200)) == "DeadlineExceeded"
    assert "unchanged" in apply(text)
    apply(overlay("late", patches=[job_patch("{activeDeadlineSeconds: 900}")]))
    time.sleep(5)
    assert "Failed" in kube.conditions(get("job", "train-late")["status"])
    kubectl("-n", kube.NAMESPACE, "delete", "job", "train-late")
    before = len(stored("runs", "late/attempts/"))
    apply(overlay("late"))
    wait_for("an attempt", lambda: len(stored("runs", "late/attempts/")) > before)


def test_eight_pods_start_again_soon_after_an_eviction() -> None:
    """The delay is that of each pod alone, where one for all would be 10 minutes."""
    patch = job_patch(f"{{completions: 8, parallelism: 8, {shell('sleep 10; exit 75')}}}")
    apply(overlay("eight", ["multi-node"], [patch]))
    found = wait_for(
        "second pods of all",
        lambda: found if len(found := pods("train-eight")) >= 16 else [],
        120,
    )
    first, second = max(map(created, found[:8])), max(map(created, found[8:16]))
    assert second - first < 10 + 30
    assert not get("job", "train-eight")["status"].get("failed")


def test_two_pods_find_each_other_and_one_is_evicted() -> None:
    put_manifest("pair", epochs=LONG)
    apply(overlay("pair", PAIR, [job_patch("{backoffLimitPerIndex: 0}"), spread("pair")]))
    committed("pair")
    evict(of_index("train-pair", 1))
    evicted = time.time()
    found = wait_for("new pods", lambda: p if len(p := pods("train-pair")) >= 4 else [], 90)
    assert max(map(created, found)) - evicted < 60
    status = ended("train-pair", 700)
    assert "Complete" in kube.conditions(status)
    assert not status.get("failed")
    assert len(stored("runs", "pair/attempts/")) == 2
    require_exact("pair")


def test_a_pod_of_two_is_killed_hard() -> None:
    put_manifest("hard", epochs=LONG)
    apply(overlay("hard", PAIR, [spread("hard")]))
    committed("hard")
    kill(of_index("train-hard", 1))
    status = ended("train-hard", 700)
    assert "Complete" in kube.conditions(status)
    assert status["failed"] == 2, "that pod, and the one that lost it"
    require_exact("hard")


@pytest.fixture
def power() -> Iterator[list[object]]:
    """Nodes that have lost their power, which they get back."""
    nodes: list[object] = []
    yield nodes
    for node in nodes:
        for state in ("dead", "removed"):
            control(state, node, on=False)


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
