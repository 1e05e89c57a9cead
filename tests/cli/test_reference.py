"""`worker schema` and `worker models`."""

import json

from tests.support.processes import Run


def test_the_schema_is_json(run: Run) -> None:
    assert json.loads(run("schema").out)["properties"]["train"]


def test_backbones_are_listed(run: Run) -> None:
    ended = run("models", "resnet*")
    row = next(line for line in ended.out.splitlines() if line.startswith("resnet50"))
    assert row.split() == [
        "resnet50", "25.6", "M", "224", "fc", "conv1+bn1", "layer1..4",
    ]  # fmt: skip
    entries = json.loads(run("models", "--json", "inception_v3").out)
    assert entries[0]["heads"] == ["AuxLogits.fc", "fc"]
    assert run("models", "nothing*").code == 2
