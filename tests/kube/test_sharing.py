"""Pods that share work without meeting: a prediction and the trials of a sweep."""

import pytest

from tests.kube.cluster import (
    apply,
    conditions,
    ended,
    evict,
    put_manifest,
    put_text,
    running,
    stored,
    wait_for,
    worker,
)
from tests.kube.overlays import overlay

pytestmark = [pytest.mark.kube, pytest.mark.usefixtures("cluster")]

SWEEP = """\
version: 1
sweep: rates
output: s3://runs/rates/
base: s3://jobs/rates-base.yaml
vary: {optimizer.lr: {each: [1e-4, 1e-3, 1e-2]}}
goal: {max: accuracy}
"""
VALIDATION = "val: s3://datasets/squares/"


def settings(**values: str) -> str:
    """A patch of the settings that the examples of both kinds have."""
    pairs = ", ".join(f'{name}: "{value}"' for name, value in values.items())
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{MANIFEST: null, {pairs}}}"


def test_two_pods_share_a_prediction_and_one_is_evicted() -> None:
    put_manifest("model", epochs=1)
    apply(overlay("model"))
    assert "Complete" in conditions(ended("train-model"))
    where = {"MODEL": "s3://runs/model/", "IMAGES": "s3://datasets/squares/"}
    patch = settings(**where, PREDICTIONS="s3://runs/predicted/")
    apply(overlay("predict", ("credentials", "predict"), [patch]))
    evict(running("train-predict", count=2)[1])
    status = ended("train-predict")
    assert "Complete" in conditions(status)
    assert not status.get("failed")
    assert "160" in worker("audit", "s3://runs/predicted/")


def test_two_pods_share_a_sweep_and_one_is_evicted() -> None:
    put_manifest("rates-base", epochs=6, more_data=VALIDATION)
    put_text("jobs", "rates.yaml", SWEEP)
    patch = settings(SWEEP="s3://jobs/rates.yaml")
    apply(overlay("rates", ("credentials", "sweep"), [patch]))
    pair = running("train-rates", count=2)
    wait_for("two trials", lambda: len(trials()) >= 2)
    evict(pair[1])
    status = ended("train-rates", 900)
    assert "Complete" in conditions(status)
    assert not status.get("failed")
    assert len(trials()) == 3
    said = worker("status", "s3://runs/rates/")
    assert "3 of 3" in said, said


def trials() -> set[str]:
    """The trials that have begun to write."""
    return {key.split("/")[2] for key in stored("runs", "rates/trials/")}
