"""Kubernetes manifests: schemas, an API server's rules, and policies."""

import copy
import json
import os
import re
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as kubeflow
import kubernetes_validate
import pytest

from tests.support.manifests import (
    EXAMPLES,
    FATAL,
    STOPPED,
    Object,
    job_specs,
    of_kind,
    render,
    render_overlay,
    violations,
)
from tests.support.paths import ROOT

pytestmark = pytest.mark.e2e

SUPPORTED = ("1.31", "1.37")  # the oldest and the newest minor version
CUSTOM = {"JobSet", "TrainJob", "TrainingRuntime", "PodMonitor", "PrometheusRule"}


@pytest.fixture(params=[*EXAMPLES, "monitoring"])
def variant(request: pytest.FixtureRequest) -> list[Object]:
    """The objects of every variant that is shipped."""
    name = request.param
    return render(ROOT / "k8s" / (name if name == "monitoring" else f"examples/{name}"))


def test_what_is_shipped_is_tested() -> None:
    assert [
        *("jobset", "kueue", "multi-node", "namespace", "one-pod", "predict", "sweep", "trainjob")
    ] == EXAMPLES
    used = {
        component.split("/")[-1]
        for name in EXAMPLES
        for component in re.findall(
            r"components/[a-z-]+", (ROOT / f"k8s/examples/{name}/kustomization.yaml").read_text()
        )
    }
    assert used == {path.name for path in (ROOT / "k8s/components").iterdir()}


@pytest.mark.parametrize("version", SUPPORTED)
def test_schemas(variant: list[Object], version: str) -> None:
    checked = 0
    for found in variant:
        if found["kind"] not in CUSTOM:
            kubernetes_validate.validate(found, version, strict=True)
            checked += 1
    assert checked
    # The pods of the other kinds are pods, too.
    for name, spec in job_specs(variant):
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
        kubernetes_validate.validate(job, version, strict=True)


def test_schemas_of_other_projects(variant: list[Object]) -> None:
    """Their models drop what they do not know, so what comes back must be what went in."""
    from cloudcoil.models.prometheus_operator import v1 as operator

    models = {
        "JobSet": kubeflow.JobsetV1alpha2JobSet,
        "TrainJob": kubeflow.TrainerV1alpha1TrainJob,
        "TrainingRuntime": kubeflow.TrainerV1alpha1TrainingRuntime,
    }
    operators = {"PodMonitor": operator.PodMonitor, "PrometheusRule": operator.PrometheusRule}
    for found in variant:
        kind = found["kind"]
        if kind in models:
            assert dropped(found, models[kind].from_dict(found).to_dict()) == []
        elif kind in operators:
            model: Any = operators[kind]
            back = model.model_validate(found).model_dump(mode="json", by_alias=True)
            assert dropped(found, back) == []


def dropped(value: Any, back: Any, path: str = "") -> list[str]:
    """Where `back` has not all that `value` has; defaults that it has besides are no matter."""
    if isinstance(value, dict):
        parts = [
            dropped(item, (back or {}).get(key), f"{path}.{key}") for key, item in value.items()
        ]
    elif isinstance(value, list) and len(value) == len(back or []):
        pairs = zip(value, back or [], strict=True)
        parts = [dropped(item, other, f"{path}[{n}]") for n, (item, other) in enumerate(pairs)]
    else:
        return [] if value == back else [f"{path}: {value!r} became {back!r}"]
    return [text for part in parts for text in part]


def test_what_only_a_server_enforces(variant: list[Object]) -> None:
    assert violations(variant) == []


def break_restart(spec: Object) -> None:
    spec["template"]["spec"]["restartPolicy"] = "OnFailure"


def break_container(spec: Object) -> None:
    spec["podFailurePolicy"]["rules"][2]["onExitCodes"]["containerName"] = "main"


def break_subdomain(spec: Object) -> None:
    spec["template"]["spec"]["subdomain"] = "rendezvous-2"


def break_counts(spec: Object) -> None:
    spec["backoffLimit"] = 6


def break_nodes(spec: Object) -> None:
    spec["completions"] = spec["parallelism"] = 3


def break_root(spec: Object) -> None:
    spec["template"]["spec"]["securityContext"]["runAsNonRoot"] = False


@pytest.mark.parametrize(
    "harm",
    [break_restart, break_container, break_subdomain, break_counts, break_nodes, break_root],
)
def test_the_rules_notice(harm: Callable[[Object], None]) -> None:
    objects = copy.deepcopy(render(ROOT / "k8s/examples/multi-node"))
    harm(of_kind(objects, "Job")[0]["spec"])
    assert violations(objects)


def test_exit_codes_are_acted_on_as_documented(variant: list[Object]) -> None:
    for _, spec in job_specs(variant):
        disrupted, fatal, stopped = spec["podFailurePolicy"]["rules"]
        assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        assert (disrupted["action"], stopped["action"]) == ("Ignore", "Ignore")
        assert (fatal["action"], set(fatal["onExitCodes"]["values"])) == ("FailJob", FATAL)
        assert set(stopped["onExitCodes"]["values"]) == STOPPED
        # The preflight may find something fatal, or be stopped, too.
        assert "containerName" not in fatal["onExitCodes"] | stopped["onExitCodes"]


def test_of_several_pods_each_is_delayed_by_its_own_failures_alone() -> None:
    """A limit for all together would delay all by every pod that ends, stops included."""
    (job,) = of_kind(render(ROOT / "k8s/examples/multi-node"), "Job")
    assert (job["spec"]["backoffLimitPerIndex"], job["spec"]["maxFailedIndexes"]) == (6, 0)
    assert "backoffLimit" not in job["spec"]


def test_what_is_finished_is_removed() -> None:
    for name in ("one-pod", "multi-node", "jobset", "trainjob"):
        objects = render(ROOT / f"k8s/examples/{name}")
        specs = [o["spec"] for o in objects if o["kind"] in ("Job", "JobSet")]
        specs += [o["spec"]["template"]["spec"] for o in of_kind(objects, "TrainingRuntime")]
        assert [spec["ttlSecondsAfterFinished"] for spec in specs] == [86400], name


def test_a_job_set_fails_for_good_where_its_job_does() -> None:
    for name in ("jobset", "trainjob"):
        objects = render(ROOT / f"k8s/examples/{name}")
        assert of_kind(objects, "Job") == []
        if name == "jobset":
            spec = of_kind(objects, "JobSet")[0]["spec"]
        else:
            spec = of_kind(objects, "TrainingRuntime")[0]["spec"]["template"]["spec"]
        (rule,) = spec["failurePolicy"]["rules"]
        assert rule["action"] == "FailJobSet"
        assert rule["onJobFailureReasons"] == ["PodFailurePolicy", "DeadlineExceeded"]
        assert rule["targetReplicatedJobs"] == [job["name"] for job in spec["replicatedJobs"]]
        assert spec["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] == 0


def test_a_train_job_names_its_runtime_and_container() -> None:
    objects = render(ROOT / "k8s/examples/trainjob")
    (job,), (runtime,) = of_kind(objects, "TrainJob"), of_kind(objects, "TrainingRuntime")
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (part,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # Trainer looks for these.
    assert part["name"] == "node"
    assert part["template"]["metadata"]["labels"] == {
        "trainer.kubeflow.org/trainjob-ancestor-step": "trainer"
    }
    assert part["template"]["spec"]["template"]["spec"]["containers"][0]["name"] == "node"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["multi-node", "jobset", "trainjob"])
@pytest.mark.parametrize("change", ["namePrefix: team-", "nameSuffix: -b", "namespace: other"])
def test_names_still_fit_after_a_change(
    tmp_path: Path, kind: str, change: str, shared: bool
) -> None:
    """Of the job alone, and of an overlay that holds what the namespace shares, too."""
    text = (ROOT / f"k8s/examples/{kind}/kustomization.yaml").read_text()
    text = re.sub(r"^(nameSuffix|namespace): .*$", "", text, flags=re.MULTILINE)
    if shared:
        text = text.replace("resources: [", "resources: [../../namespace, ")
    objects = render_overlay(tmp_path, f"{text}\n{change}\n")
    assert violations(objects) == []
    if change != "namespace: other":
        plain = {o["metadata"]["name"] for o in render_overlay(tmp_path, text)}
        assert plain.isdisjoint(o["metadata"]["name"] for o in objects)


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_changes_of_the_job_reach_the_pods_of_other_kinds(tmp_path: Path, kind: str) -> None:
    text = (ROOT / f"k8s/examples/{kind}/kustomization.yaml").read_text()
    more = """
      - patch: |
          apiVersion: batch/v1
          kind: Job
          metadata: {name: train}
          spec: {template: {spec: {priorityClassName: low}}}
    """
    text = text.replace("patches:\n", "patches:" + textwrap.indent(textwrap.dedent(more), "  "), 1)
    objects = render_overlay(tmp_path, text)
    assert violations(objects) == []
    assert of_kind(objects, "Job") == []
    ((_, spec),) = job_specs(objects)
    pod = spec["template"]["spec"]
    assert pod["priorityClassName"] == "low"
    assert "credentials" in {volume["name"] for volume in pod["volumes"]}


def test_a_runtime_comes_before_its_job() -> None:
    kinds = [found["kind"] for found in render(ROOT / "k8s/examples/trainjob")]
    assert kinds.index("TrainingRuntime") < kinds.index("TrainJob")


def test_keys_for_a_token_are_not_asked_of_the_store() -> None:
    """AWS_ENDPOINT_URL would send STS there, too."""
    for name in set(EXAMPLES) - {"namespace"}:
        (settings,) = of_kind(render(ROOT / f"k8s/examples/{name}"), "ConfigMap")
        assert "AWS_ENDPOINT_URL" not in settings["data"]


def test_policies(tmp_path: Path) -> None:
    """checkov over all variants; `.checkov.yaml` gives the reason of each rule that is left out."""
    cache = Path(os.environ.get("WORKER_CI_CACHE", Path.home() / ".cache/worker-ci"))
    for name in EXAMPLES:
        objects = [
            o if o["kind"] not in CUSTOM else None for o in render(ROOT / f"k8s/examples/{name}")
        ]
        for number, found in enumerate(filter(None, objects)):
            (tmp_path / f"{name}-{number}.json").write_text(json.dumps(found))
    done = subprocess.run(
        [
            *(f"{cache}/checkov/bin/checkov", "--directory", str(tmp_path)),
            *("--framework", "kubernetes", "--skip-download", "--quiet", "--compact"),
            *("--config-file", str(ROOT / ".checkov.yaml"), "--output", "json"),
        ],
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0, [
        (check["check_id"], check["check_name"], check["resource"])
        for check in report["results"]["failed_checks"]
    ]
    assert report["summary"]["passed"] > 100
