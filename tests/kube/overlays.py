"""Overlays of the shipped files, written as a user would, and patches for them."""

import os
from collections.abc import Sequence

from tests.kube.cluster import PLACE, kubectl
from tests.support.paths import ROOT

OVERLAY = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: training
nameSuffix: -{name}
resources: [{k8s}/base]
components: [{components}]
images: [{{name: worker, newName: {repository}, newTag: {tag}}}]
patches:
  - patch: |
      apiVersion: v1
      kind: ConfigMap
      metadata: {{name: settings}}
      data: {{MANIFEST: "s3://jobs/{name}.yaml", AWS_ENDPOINT_URL_S3: "http://minio.storage:9000"}}
"""
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


def overlay(
    name: str,
    components: Sequence[str] = ("credentials",),
    patches: Sequence[str] = (),
    more: str = "",
    image: str = "registry.example.org/worker:0.1.0",
) -> str:
    """Write an overlay as a user would, and render it.

    Args:
        name: The job's, and its manifest's.
        components: Those of k8s/components.
        patches: More patches, as YAML.
        more: The rest of the kustomization.
        image: The only one that nodes can pull without a secret, unless said otherwise.
    """
    folder = PLACE / "overlays" / name
    folder.mkdir(parents=True, exist_ok=True)
    k8s = os.path.relpath(ROOT / "k8s", folder)
    listed = ", ".join(f"{k8s}/components/{component}" for component in components)
    repository, _, tag = image.rpartition(":")
    text = OVERLAY.format(name=name, k8s=k8s, components=listed, repository=repository, tag=tag)
    for patch in patches:
        text += "  - patch: |\n" + "".join(f"      {line}\n" for line in patch.splitlines())
    (folder / "kustomization.yaml").write_text(text + more)
    return kubectl("kustomize", str(folder))


def job_patch(spec: str) -> str:
    """A patch of the job's spec, given as YAML in one line."""
    return f"apiVersion: batch/v1\nkind: Job\nmetadata: {{name: train}}\nspec: {spec}"


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
