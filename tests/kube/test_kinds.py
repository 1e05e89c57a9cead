"""JobSet, TrainJob and Kueue with their own controllers and webhooks."""

import contextlib
import time

import pytest

from tests.kube import cluster as kube
from tests.kube.cluster import (
    apply,
    committed,
    conditions,
    ended,
    evict,
    get,
    kill,
    kubectl,
    pods,
    put_manifest,
    running,
    shown,
    stored,
    wait_for,
)
from tests.kube.overlays import job_patch, overlay
from tests.support.paths import ROOT

pytestmark = [pytest.mark.kube, pytest.mark.usefixtures("controllers", "cluster")]

REPLACED = """\
replacements:
  - source: {kind: Job, name: train, fieldPath: spec}
    targets:
      - select: {KIND}
        fieldPaths: [PATH]
        options: {create: true}
"""
JOBSET = REPLACED.replace("KIND", "kind: JobSet, name: train").replace(
    "PATH", "spec.replicatedJobs.0.template.spec"
)
TRAINJOB = REPLACED.replace("KIND", "kind: TrainingRuntime, name: worker").replace(
    "PATH", "spec.template.spec.replicatedJobs.0.template.spec"
)
QUEUES = """
apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata: {name: any}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: cluster}
spec:
  namespaceSelector: {}
  preemption: {withinClusterQueue: LowerPriority}
  resourceGroups:
    - coveredResources: [cpu, memory, nvidia.com/gpu]
      flavors:
        - name: any
          resources:
            - {name: cpu, nominalQuota: 32}
            - {name: memory, nominalQuota: 128Gi}
            - {name: nvidia.com/gpu, nominalQuota: 2}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: training, namespace: training}
spec: {clusterQueue: cluster}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: WorkloadPriorityClass
metadata: {name: high}
value: 1000
"""


@pytest.fixture(scope="session")
def controllers(plane: None) -> None:
    """The controllers of all three, with their webhooks."""
    addons = str(kube.MACHINE / "addons.py")
    python = str(ROOT / ".venv/bin/python")
    kube.run(python, addons, "crds")
    kube.run(python, addons, "start", "jobset", "trainer", "kueue")


@pytest.mark.parametrize("example", ["jobset", "kueue"])
def test_a_server_takes_the_examples(example: str) -> None:
    path = str(ROOT / "k8s/examples" / example)
    assert "Warning" not in kubectl("apply", "--dry-run=server", "--validate=strict", "-k", path)
    monitoring = ("apply", "-n", kube.NAMESPACE, "--dry-run=server", "-k")
    assert "Warning" not in kubectl(*monitoring, str(ROOT / "k8s/monitoring"))


@pytest.mark.row("`apply` of a TrainJob")
def test_a_server_refuses_a_train_job_before_it_has_seen_the_runtime() -> None:
    path = str(ROOT / "k8s/examples/trainjob")
    arguments = ("apply", "--dry-run=server", "--validate=strict", "-k", path)
    said = kubectl(*arguments, check=False)
    assert "trainingruntime.trainer.kubeflow.org/worker-ants-bees created (server dry run)" in said
    # By whether it has seen one of another test.
    texts = ("specified trainingRuntime must be created before", "'worker-ants-bees' not found")
    assert any(text in said for text in texts), said


def test_a_job_set_resumes_and_ends_at_once_where_it_must() -> None:
    put_manifest("js", epochs=30)
    apply(overlay("js", ("credentials", "jobset"), more=JOBSET))
    committed("js")
    evict(running("train-js-node-0", count=2)[1])
    wait_for("another attempt", lambda: len(stored("runs", "js/attempts/")) == 2)
    committed("js", 2)
    kill(running("train-js-node-0", count=2)[1])
    status = ended("train-js", 700, "jobset")
    assert "Completed" in conditions(status)
    assert status["restarts"] == 1, "the kill, and not the eviction"
    put_manifest("jf", epochs=2, more_data="color: blue")
    apply(overlay("jf", ("credentials", "jobset"), more=JOBSET))
    status = ended("train-jf", 200, "jobset")
    assert "Failed" in conditions(status)
    assert not status.get("restarts")


def apply_train_job(text: str) -> None:
    """Apply a runtime and its TrainJob; again if Trainer's webhook has not seen the runtime yet."""
    with contextlib.suppress(AssertionError):
        apply(text)
        return
    time.sleep(3)
    apply(text)


def test_a_train_job_resumes_and_is_removed() -> None:
    patch = """\
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainingRuntime
metadata: {name: worker}
spec: {template: {spec: {ttlSecondsAfterFinished: 20}}}"""
    put_manifest("tj", epochs=30)
    apply_train_job(overlay("tj", ("credentials", "trainjob"), [patch], TRAINJOB))
    committed("tj")
    evict(running("train-tj-node-0", "node", count=2)[1])
    assert "Complete" in conditions(ended("train-tj", 700, "trainjob"))
    assert len(stored("runs", "tj/attempts/")) == 2
    wait_for("its JobSet to be removed", lambda: not get("jobset", "train-tj"), 90)


def test_a_train_job_fails_at_once_where_it_must() -> None:
    put_manifest("tf", epochs=2, more_data="color: blue")
    apply_train_job(overlay("tf", ("credentials", "trainjob"), more=TRAINJOB))
    assert "Failed" in conditions(ended("train-tf", 200, "trainjob"))


@pytest.mark.row("Job `Suspended`, no pods")
def test_a_queue_without_quota_says_so() -> None:
    """The queue has 2 GPUs, and the job wants 4."""
    apply(QUEUES)
    apply(
        overlay(
            "much",
            ("multi-node", "kueue", "credentials"),
            [job_patch("{completions: 4, parallelism: 4}")],
        )
    )
    asked = ("workloads", "-o", "jsonpath={.items[*].status.conditions[*].message}")
    said = wait_for("the reason", lambda: shown(*asked), 60)
    assert "insufficient quota for nvidia.com/gpu" in said
    assert "Suspended" in shown("job", "train-much")
    assert not pods("train-much")


def test_kueue_suspends_and_resumes() -> None:
    """A job of high priority takes the room of one that trains, and gives it back."""
    apply(QUEUES)
    parts = ("multi-node", "kueue", "credentials")
    put_manifest("q1", epochs=40)
    apply(overlay("q1", parts, [job_patch("{backoffLimitPerIndex: 0}")]))
    committed("q1")
    put_manifest("q2", epochs=2)
    high = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: train, labels: {kueue.x-k8s.io/priority-class: high}}"
    apply(overlay("q2", parts, [high]))
    wait_for("q1 to be suspended", lambda: get("job", "train-q1")["spec"].get("suspend"), 120)
    began = time.monotonic()
    assert "Complete" in conditions(ended("train-q2", 400))
    assert "Complete" in conditions(ended("train-q1", 700))
    assert time.monotonic() - began < 600
    assert len(stored("runs", "q1/attempts/")) == 2
