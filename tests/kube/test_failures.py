"""Every row of "How to read a failure" in docs/kubernetes.md: what a person sees, and the remedy.

A case is marked with the beginning of its row; tests/repository finds rows without one.
"""

import re
import time

import pytest

from tests.kube import cluster as kube
from tests.kube.cluster import (
    NAMESPACE,
    apply,
    conditions,
    control,
    ended,
    events,
    get,
    kubectl,
    name_of,
    pods,
    put_manifest,
    reason,
    running,
    shown,
    stored,
    wait_for,
)
from tests.kube.overlays import job_patch, overlay, shell, spread
from tests.support.paths import ROOT

pytestmark = [pytest.mark.kube, pytest.mark.usefixtures("cluster")]

PAIR = ("multi-node", "credentials")
UNTIL_STOPPED = 'trap "exit 75" TERM; sleep 600 & wait'


@pytest.mark.row("reason `PodFailurePolicy`")
@pytest.mark.parametrize("where", ["worker", "check"])
@pytest.mark.parametrize("code", [2, 65, 76, 78])
def test_a_code_that_another_run_would_not_change_fails_the_job(code: int, where: str) -> None:
    name = f"{where[0]}{code}"
    commands = (f"exit {code}", "true") if where == "worker" else ("true", f"exit {code}")
    apply(overlay(name, patches=[job_patch(f"{{{shell(*commands)}}}")]))
    status = ended(f"train-{name}", 90)
    assert reason(status) == "PodFailurePolicy"
    (pod,) = pods(f"train-{name}")
    message = next(c["message"] for c in status["conditions"] if c["type"] == "Failed")
    assert f"pod {NAMESPACE}/{name_of(pod)} failed with exit code {code}" in message


@pytest.mark.row("reason `BackoffLimitExceeded`")
@pytest.mark.parametrize("code", [69, 70, 137])
def test_a_failure_is_counted(code: int) -> None:
    patch = job_patch(f"{{backoffLimit: 0, {shell(f'exit {code}')}}}")
    apply(overlay(f"f{code}", patches=[patch]))
    assert reason(ended(f"train-f{code}", 90)) == "BackoffLimitExceeded"


@pytest.mark.row("reason `BackoffLimitExceeded`")
def test_a_failure_of_one_of_several_pods_too_often_fails_the_job() -> None:
    patch = job_patch(f"{{backoffLimitPerIndex: 1, {shell('exit 69')}}}")
    apply(overlay("often", ["multi-node"], [patch]))
    assert reason(ended("train-often", 120)) == "MaxFailedIndexesExceeded"


@pytest.mark.row("pods end in `check` (`Init:Error`)")
def test_the_documented_commands_show_a_failed_check() -> None:
    put_manifest("wrong", epochs=2, more_data="color: blue")
    apply(overlay("wrong"))
    assert reason(ended("train-wrong", 180)) == "PodFailurePolicy"
    assert "Init:Error" in shown("pods", "-l", "job-name=train-wrong")
    page = (ROOT / "docs/kubernetes.md").read_text()
    (block,) = re.findall(r"## How to read a failure\n\n```console\n(.*?)```", page, re.S)
    text = re.sub("^[$] ", "", block, flags=re.M).replace("train-ants-bees", "train-wrong")
    said = kube.run(
        "sh", "-c", f"export KUBECONFIG={kube.CONFIG} PATH={kube.PLACE}/bin:$PATH; {text}"
    )
    assert re.search(r"train-wrong-\S+ +78 +<none>", said), said
    assert "PodFailurePolicy" in said
    assert "data.color: unknown key" in said


@pytest.mark.row("`Init:0/1`, event `FailedMount`")
def test_a_missing_secret_keeps_the_pod_from_starting() -> None:
    put_manifest("secret", epochs=1)
    patch = """\
apiVersion: batch/v1
kind: Job
metadata: {name: train}
spec: {template: {spec: {volumes: [{name: credentials, secret: {secretName: not-there}}]}}}"""
    apply(overlay("secret", patches=[patch]))
    listing = ("pods", "-l", "job-name=train-secret")
    wait_for("a pod that waits for its Secret", lambda: "Init:0/1" in shown(*listing), 60)
    time.sleep(10)
    assert "Init:0/1" in shown(*listing), "it waits on"
    assert "FailedMount" in events("train-secret")


@pytest.mark.row("reason `DeadlineExceeded`")
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


@pytest.mark.row("condition `FailureTarget` without `Failed`")
@pytest.mark.row("a pod stays `Terminating`")
def test_a_job_that_gave_up_waits_for_a_pod_on_a_dead_node(power: list[object]) -> None:
    """Pod 0 ends with 78, pod 1 is on a node without power."""
    commands = f"[ $HOSTNAME = train-given-up-1 ] || {{ sleep 20; exit 78; }}; {UNTIL_STOPPED}"
    patches = [job_patch(f"{{{shell(commands)}}}"), spread("given-up")]
    apply(overlay("given-up", ["multi-node"], patches))
    lost = max(running("train-given-up", count=2), key=name_of)
    power.append(lost["spec"]["nodeName"])
    control("dead", power[0])
    wait_for("FailureTarget", lambda: conditions(get("job", "train-given-up")["status"]), 60)
    time.sleep(20)
    assert conditions(get("job", "train-given-up")["status"]) == {"FailureTarget"}
    listing = shown("pods", "-l", "job-name=train-given-up")
    assert re.search(rf"{name_of(lost)} .* Terminating", listing), listing
    assert "NotReady" in shown("node", str(power[0]))
    control("dead", power[0], on=False)
    assert reason(ended("train-given-up", 120)) == "PodFailurePolicy"


@pytest.mark.row("`Running`, no pods, no event")
def test_a_job_says_nothing_before_its_next_pod_and_starts_at_once_when_applied_again() -> None:
    text = overlay("waits", patches=[job_patch(f"{{{shell(UNTIL_STOPPED)}}}")])
    apply(text)
    for _ in range(3):  # after which the controller waits for 10, 20 and 40 s
        kubectl("-n", NAMESPACE, "delete", "pod", name_of(running("train-waits")[0]))
    time.sleep(25)
    assert not pods("train-waits")
    assert "Running" in shown("job", "train-waits")
    reasons = {line.split()[2] for line in events("train-waits").splitlines()}
    assert reasons == {"SuccessfulCreate", "Scheduled"}
    kubectl("-n", NAMESPACE, "delete", "job", "train-waits")
    apply(text)
    wait_for("a pod", lambda: pods("train-waits"), 8)


@pytest.mark.row("`waiting for the other ranks at train-0…`")
@pytest.mark.row("`Pending`, event `Insufficient nvidia.com/gpu`")
def test_a_pod_without_gpus_keeps_the_others_waiting() -> None:
    """Two nodes have 8 GPUs each, and the job wants four times that."""
    put_manifest("gpus", epochs=1)
    nodes = 'env: [{name: WORKER_NODES, value: "4"}]'
    limits = "resources: {limits: {nvidia.com/gpu: 8}, requests: {cpu: 1}}"
    spec = (
        "{completions: 4, parallelism: 4, template: {spec: {"
        f"initContainers: [{{name: check, {nodes}, {limits}}}], "
        f"containers: [{{name: worker, {nodes}, {limits}}}]}}}}}}"
    )
    apply(overlay("gpus", PAIR, [job_patch(spec)]))
    waiting = running("train-gpus", count=2)
    assert "Pending" in shown("pods", "-l", "job-name=train-gpus")
    assert "Insufficient nvidia.com/gpu" in events("train-gpus")
    message = "is waiting for the other ranks at train-gpus-0.rendezvous"
    for pod in waiting:
        log = ("-n", NAMESPACE, "logs", name_of(pod))
        wait_for("the message", lambda log=log: message in kubectl(*log), 60)  # type: ignore[misc]


PULL_SECRET = '{"imagePullSecrets": [{"name": "registry"}]}'


@pytest.mark.row("`Init:ImagePullBackOff`")
def test_an_image_that_cannot_be_pulled_and_its_pull_secret() -> None:
    put_manifest("pull", epochs=1)
    text = overlay("pull", image="registry.example.org/private/worker:0.1.0")
    apply(text)
    listing = ("pods", "-l", "job-name=train-pull")
    wait_for("the state", lambda: "Init:ImagePullBackOff" in shown(*listing), 60)
    login = ("--docker-server=registry.example.org", "--docker-username=me", "--docker-password=x")
    kubectl("-n", NAMESPACE, "create", "secret", "docker-registry", "registry", *login, check=False)
    kubectl("-n", NAMESPACE, "patch", "serviceaccount", "worker", "-p", PULL_SECRET)
    try:
        kubectl("-n", NAMESPACE, "delete", "job", "train-pull")
        apply(text)
        assert "Complete" in conditions(ended("train-pull"))
    finally:
        kubectl(
            "-n", NAMESPACE, "patch", "serviceaccount", "worker", "-p", '{"imagePullSecrets": null}'
        )


QUOTA = """\
apiVersion: v1
kind: ResourceQuota
metadata: {name: none, namespace: training}
spec: {hard: {requests.nvidia.com/gpu: 0}}"""


@pytest.mark.row("`Running`, no pods, event `FailedCreate`")
def test_a_quota_keeps_pods_from_being_created() -> None:
    apply(QUOTA)
    try:
        apply(overlay("quota"))
        wait_for("the event", lambda: "FailedCreate" in events("train-quota"), 60)
        assert "exceeded quota: none, requested: requests.nvidia.com/gpu=1" in events("train-quota")
        assert "Running" in shown("job", "train-quota")
    finally:
        kubectl("-n", NAMESPACE, "delete", "resourcequota", "none")


@pytest.mark.row("`Running`, no pods, event `FailedCreate`")
def test_a_namespace_that_was_not_set_up() -> None:
    kubectl("-n", NAMESPACE, "delete", "serviceaccount", "worker")
    try:
        put_manifest("bare", epochs=1)
        apply(overlay("bare"))
        wait_for("the event", lambda: "FailedCreate" in events("train-bare"), 60)
        assert 'serviceaccount "worker" not found' in events("train-bare")
        assert not pods("train-bare")
    finally:
        kubectl("apply", "-k", str(ROOT / "k8s/examples/namespace"))
    assert "Complete" in conditions(ended("train-bare"))


@pytest.mark.row("Job `Suspended`, no pods")
def test_without_kueue_nobody_starts_a_suspended_job() -> None:
    apply(overlay("queue", ("multi-node", "kueue", "credentials")))
    time.sleep(10)
    assert "Suspended" in shown("job", "train-queue")
    assert not pods("train-queue")
