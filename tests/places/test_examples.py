"""What `examples/` has for other projects is taken by their own schemas."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.e2e

PYTHON = (
    Path(os.environ.get("WORKER_CI_CACHE", Path.home() / ".cache/worker-ci")) / "schemas/bin/python"
)
KSERVE = """
import sys, yaml
from kserve import models
from kubernetes.client import ApiClient
found = yaml.safe_load(open(sys.argv[1]))
class Answer:
    data = __import__("json").dumps(found)
client = ApiClient()
def kserve_class(name): return getattr(models, name)
service = client._ApiClient__deserialize
import kubernetes.client.models as core
for name in dir(models):
    setattr(core, name, getattr(models, name))
made = client.deserialize(Answer, "V1beta1InferenceService")
back = client.sanitize_for_serialization(made)
def known(value, back, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            known(item, back[key], f"{path}.{key}")
    else:
        assert value == back, path
known(found, back)
"""
ARGO = """
import sys, yaml
from hera.workflows.models import Workflow
found = yaml.safe_load(open(sys.argv[1]))
back = Workflow.parse_obj(found).dict(by_alias=True, exclude_none=True)
def known(value, back, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            assert key in back, f"{path}.{key} is not in the schema"
            known(item, back[key], f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            known(item, back[number], f"{path}[{number}]")
known({k: v for k, v in found.items() if k != "metadata"}, back)
"""
KUBEFLOW = """
import sys
from kfp import compiler, components, dsl
component = components.load_component_from_file(sys.argv[1])
@dsl.pipeline
def fine_tune(manifest: str = "s3://jobs/ants-bees.yaml"):
    component(manifest=manifest)
compiler.Compiler().compile(fine_tune, sys.argv[2])
assert "worker" in open(sys.argv[2]).read()
"""


@pytest.mark.parametrize(
    ("script", "file"),
    [(KSERVE, "kserve.yaml"), (ARGO, "argo.yaml"), (KUBEFLOW, "kubeflow-component.yaml")],
    ids=["kserve", "argo", "kubeflow"],
)
def test_an_example_fits_the_schema_of_its_project(script: str, file: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [str(PYTHON), "-c", script, str(ROOT / "examples" / file), str(tmp_path / "out.yaml")],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
