"""The manifest: what it takes, and one clear line for what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from worker.errors import ConfigurationError
from worker.manifest import Manifest, load_manifest, parse_manifest

DESIGN = """
version: 1
job: ants-bees-b0
output: s3://runs/ants-bees-b0/
data:
  train: s3://datasets/ants-bees/train/
  val: s3://datasets/ants-bees/val/
model:
  backbone: efficientnet_b0
  weights: s3://models/efficientnet_b0.safetensors   # or a torchvision weights name, or none
optimizer:
  name: adam
  lr: 1.0e-3
  weight_decay: 1.0e-5
  groups:                                  # first match wins; whole dotted components
    - {match: features.1, scale: 0.05}
    - {match: [features.2, features.3], scale: 0.1}
    - {match: head}                        # "head" is the replaced head of any family
    - {match: "*", scale: 0.01}
train: {epochs: 6, batch_size: 64, seed: 0}
"""


def test_the_manifest_of_the_design_page() -> None:
    manifest = parse_manifest(DESIGN, "job.yaml")
    assert manifest.optimizer.groups[1].match == ("features.2", "features.3")
    assert manifest.optimizer.groups[0].match == ("features.1",)
    assert manifest.train.batch_size == 64


def test_json_and_short_floats_are_taken() -> None:
    assert parse_manifest(DESIGN.replace("1.0e-3", "1e-3"), "x").optimizer.lr == 1e-3
    text = DESIGN.replace("scale: 0.05", "geometric: {from: 1e-5, to: 1e-3}, freeze: {epochs: 1}")
    again = parse_manifest(text, "x").model_dump_json()
    assert parse_manifest(again, "x") == parse_manifest(text, "x")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("lr: 1.0e-3", "lr: fast", "optimizer.lr: should be a valid number, not 'fast'"),
        ("lr: 1.0e-3", "lr: 0", "optimizer.lr: should be greater than 0, not 0"),
        ("lr: 1.0e-3", "lr: .inf", "optimizer.lr: should be a finite number"),
        (
            "job: ants",
            "job: ants\nweight_decay: 0",
            "weight_decay: unknown key; put it under optimizer",
        ),
        (
            "job: ants",
            "job: ants\nbatchsize: 8",
            "batchsize: unknown key; did you mean train.batch_s",
        ),
        ("job: ants-bees-b0", "job: 007", "job: must be text; put it in quotes"),
        ("match: features.1", "match: 3", "optimizer.groups[0].match: must be text; put it in quo"),
        ("[features.2, ", "[2, ", "optimizer.groups[1].match[0]: must be text; put it in quotes"),
        ("seed: 0", "output: x", "train.output: unknown key; put it at the top level"),
        ("seed: 0", "zzz: 0", "train.zzz: unknown key; known here: epochs, batch_size"),
        ("seed: 0", "speed: 0", "train.speed: unknown key; did you mean seed?"),
        ("batch_size: 64", "batch_size: 64.5", "train.batch_size: should be a valid integer"),
        ("batch_size: 64", 'batch_size: "64"', "train.batch_size: should be a valid integer"),
        ("job: ants", "job: Ants_", "job: must be 1 to 63 lowercase letters"),
        ("version: 1", "version: 2", "version: should be 1, not 2"),
        ("scale: 0.05", "scale: 0.05, lr: 1", "optimizer.groups[0]: set at most one of scale"),
        (
            "scale: 0.05",
            "freeze: 3",
            "optimizer.groups[0].freeze: should be 'always' or a mapping, not 3",
        ),
        ("scale: 0.05", "freeze: {}", "optimizer.groups[0].freeze: set either epochs or steps"),
        (
            "scale: 0.05",
            "freeze: {epoch: 1}",
            "optimizer.groups[0].freeze.epoch: unknown key; did you mean epochs?",
        ),
        (
            "scale: 0.05",
            "geometric: {from: 1e-5}",
            "optimizer.groups[0].geometric.to: missing; add it",
        ),
        (
            "scale: 0.05",
            "lr: 1e-3, geometric: {from: 1e-5, to: 1e-3}",
            "optimizer.groups[0]: set at most one of scale, lr and geometric",
        ),
        (
            "scale: 0.05",
            "layer_decay: 0.5, freeze: always",
            "optimizer.groups[0]: an always-frozen group has no rate; remove the rate or `freeze`",
        ),
        ("  name: adam", "  name: adam\n  momentum: 0.9", "optimizer: momentum belongs to sgd"),
        (
            "  name: adam",
            "  name: adam\n  schedule: {name: step}",
            "optimizer.schedule: the step schedule needs `every`, such as {epochs: 2}; add it",
        ),
        (
            "  name: adam",
            "  name: adam\n  schedule: {name: one_cycle, warmup: {steps: 1}}",
            "optimizer.schedule: one_cycle warms up by itself",
        ),
        (
            "  name: adam",
            "  name: sgd\n  momentum: 0.9\n  schedule: {name: one_cycle}",
            "optimizer: one_cycle sets the momentum itself; remove momentum",
        ),
        (
            "seed: 0",
            "sync_batch_norm: true, micro_batch: 2",
            "train: sync_batch_norm does not support micro-batches; remove micro_batch",
        ),
        (
            "seed: 0",
            "compile: true, activation_checkpointing: true",
            "train: compile chooses what to recompute; remove activation_checkpointing",
        ),
        (
            "  name: adam",
            "  name: adam\n  schedule: {name: step, every: 30}",
            "optimizer.schedule.every: must be a mapping of epochs, steps",
        ),
        (
            "scale: 0.05",
            "freeze: true",
            "optimizer.groups[0].freeze: should be 'always' or a mapping, not True",
        ),
        (
            "seed: 0",
            "class_weights: even",
            "train.class_weights: should be 'balanced' or a mapping, not 'even'",
        ),
        (
            "seed: 0",
            "class_weights: {ants: -1}",
            "train.class_weights.ants: should be greater than or equal to 0, not -1",
        ),
        ("match: features.1,", "match: [],", "optimizer.groups[0].match: "),
        ("match: features.1,", "match: 3,", "optimizer.groups[0].match: "),
        (
            "  lr: 1.0e-3",
            "  lr: 1.0e-3\n  lr: 2.0e-3",
            'line 14: the key "lr" appears twice; remove one of the two',
        ),
        ("train: {epochs", "train: [epochs", "line 20: "),
    ],
)
def test_mistakes_are_one_line_with_the_field(old: str, new: str, complaint: str) -> None:
    assert old in DESIGN
    with pytest.raises(ConfigurationError) as caught:
        parse_manifest(DESIGN.replace(old, new), "job.yaml")
    assert str(caught.value).startswith(f"manifest job.yaml: {complaint}")
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_a_line_each() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_manifest(DESIGN.replace("epochs: 6", "epoch: 6"), "job.yaml")
    assert str(caught.value).splitlines() == [
        "manifest job.yaml: 2 mistakes:",
        "  train.epochs: missing; add it",
        "  train.epoch: unknown key; did you mean epochs?",
    ]


@pytest.mark.parametrize(
    "text", ["", "just text", "- a\n- b", "\t: x", "? [1, 2]\n: 3", "a: &x\n  b: *x"]
)
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="manifest x: "):
        parse_manifest(text, "x")


def test_manifests_are_read_from_anywhere(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "job.yaml").write_text(DESIGN)
    boto3.client("s3").put_object(
        Bucket=bucket.removeprefix("s3://"), Key="jobs/job.yaml", Body=DESIGN.encode()
    )
    addresses = [
        str(tmp_path / "job.yaml"),
        f"file://{tmp_path}/job.yaml",
        f"{bucket}/jobs/job.yaml",
    ]
    assert {load_manifest(address).job for address in addresses} == {"ants-bees-b0"}


def test_only_the_cause_is_told() -> None:
    """A group that is wrong is not also missing."""
    groups = DESIGN[DESIGN.index("  groups:") : DESIGN.index("train: {epochs")]
    with pytest.raises(ConfigurationError) as caught:
        parse_manifest(DESIGN.replace(groups, "  groups: [{match: []}]\n"), "job.yaml")
    assert str(caught.value).count(";") == 0, caught.value
    with pytest.raises(ConfigurationError, match="optimizer.groups: .* at least 1 item"):
        parse_manifest(DESIGN.replace(groups, "  groups: []\n"), "job.yaml")


def test_a_mistake_in_a_mapping_is_not_told_of_its_other_forms() -> None:
    data = DESIGN.replace("data:\n", "data:\n  image_size: {train: 176, evaluation: 224}\n")
    with pytest.raises(ConfigurationError) as caught:
        parse_manifest(data, "job.yaml")
    assert "integer" not in str(caught.value)
    assert "data.image_size.evaluation: unknown key; did you mean evaluate?" in str(caught.value)


def test_the_schema_describes_every_field() -> None:
    schema = json.dumps(Manifest.model_json_schema())
    for field in ("image_size", "weight_decay", "freeze", "every_steps"):
        assert f'"{field}"' in schema
    assert "Leading components of the parameter's dotted name" in schema


def test_a_manifest_is_read_without_torch() -> None:
    """Which takes seconds to import, and a mistake should be told at once."""
    code = (
        "import sys; from worker.manifest import load_manifest; "
        "from worker.ranks.stop_signal import StopFlag; import worker.cli; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
