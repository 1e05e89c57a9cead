"""Trials are pure functions of the sweep and of their number, and cover their ranges."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from worker.errors import ConfigurationError
from worker.manifest.load import check_section
from worker.sweep.manifest import SweepManifest
from worker.sweep.trials import applied, repeats_of, trials_of

SWEEP: dict[str, Any] = {
    "version": 1,
    "sweep": "rates",
    "output": "/tmp/out",
    "base": "/tmp/job.yaml",
    "vary": {
        "optimizer.lr": {"log": [1e-4, 1e-1]},
        "optimizer.groups.backbone.layer_decay": {"linear": [0.5, 0.95]},
        "train.batch_size": {"log": [8, 64]},
        "model.dropout": {"each": [None, 0.2]},
        "train.seed": {"each": [0, 1, 2]},
        "data.fold.hold": {"each": [0, 1]},
    },
    "trials": 16,
    "goal": {"max": "macro_f1"},
}


def sweep_of(**changes: Any) -> SweepManifest:
    return check_section({**SWEEP, **changes}, "sweep", SweepManifest)


def test_each_draw_comes_with_each_choice_and_repeats_are_not_choices() -> None:
    trials = trials_of(sweep_of())
    assert len(trials) == 32
    assert [trial["model.dropout"] for trial in trials[:4]] == [None, 0.2, None, 0.2]
    assert trials[0]["optimizer.lr"] == trials[1]["optimizer.lr"] != trials[2]["optimizer.lr"]
    assert all("train.seed" not in trial for trial in trials)
    repeats = repeats_of(sweep_of())
    assert len(repeats) == 6
    assert repeats[0] == {"train.seed": 0, "data.fold.hold": 0}


def test_trials_stay_when_more_are_added_and_in_another_process() -> None:
    few, many = trials_of(sweep_of()), trials_of(sweep_of(trials=64))
    assert many[: len(few)] == few
    program = (
        "import json, sys; from worker.manifest.load import check_section;"
        "from worker.sweep.manifest import SweepManifest; from worker.sweep.trials import trials_of;"
        "print(json.dumps(trials_of(check_section(json.load(sys.stdin), '', SweepManifest))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(SWEEP), capture_output=True, text=True
    )
    assert json.loads(done.stdout) == list(few)


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_a_range_is_covered_evenly(scale: str) -> None:
    """16 points of a Sobol sequence: one in each sixteenth of the range."""
    low, high = (1e-4, 1.0) if scale == "log" else (0.0, 1.0)
    trials = trials_of(sweep_of(vary={"optimizer.lr": {scale: [low, high]}}))
    values = sorted(trial["optimizer.lr"] for trial in trials)
    assert low <= values[0]
    assert values[-1] <= high
    for n, value in enumerate(values):
        edges = [low * (high / low) ** (k / 16) if scale == "log" else k / 16 for k in (n, n + 1)]
        assert edges[0] * 0.999 <= value <= edges[1] * 1.001


@examples(200)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from(["log", "linear"]))
def test_integers_stay_integers_within_their_bounds(low: int, span: int, scale: str) -> None:
    trials = trials_of(sweep_of(vary={"train.batch_size": {scale: [low, low + span]}}, trials=64))
    values = {trial["train.batch_size"] for trial in trials}
    assert all(isinstance(value, int) and low <= value <= low + span for value in values)
    if span <= 4:
        assert values == set(range(low, low + span + 1))


def test_settings_are_put_where_their_path_leads() -> None:
    base = {
        "optimizer": {"lr": 1.0, "groups": [{"name": None}, {"name": "backbone", "scale": None}]},
        "data": {"fold": None},
    }
    data = applied(base, {"optimizer.lr": 2.0, "optimizer.groups.backbone.scale": 0.5})
    assert data["optimizer"] == {
        "lr": 2.0,
        "groups": [{"name": None}, {"name": "backbone", "scale": 0.5}],
    }
    assert base["optimizer"]["lr"] == 1.0  # type: ignore[index]
    for path, complaint in (
        ("optimizer.rl", "vary.optimizer.rl: no such setting; known here: lr, groups"),
        ("optimizer.groups.head.scale", "the base has no group named 'head' .there are backbone."),
        ("data.fold.hold", "the base does not set data.fold; add it there"),
        ("optimizer.lr.x", "no such setting"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            applied(base, {path: 1})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"trials": None}, "trials: missing; set the number of draws"),
        ({"vary": {"train.seed": {"each": [1, 2]}}}, "trials: nothing is drawn"),
        ({"vary": {"train.seed": {"linear": [1, 9]}}}, "vary.train.seed: repeats every trial"),
        ({"vary": {"optimizer.lr": {"log": [0, 1]}}}, "a logarithmic range must start above 0"),
        ({"vary": {"optimizer.lr": {"log": [2, 1]}}}, "must be .lowest, highest. with lowest <"),
        ({"vary": {"optimizer.lr": {}}}, "set exactly one of log, linear and each"),
        ({"vary": {"optimizer.lr": {"each": [1, 1]}}}, "a value is listed twice"),
        ({"vary": {"optimizer.lr": {"liner": [1, 2]}}}, "liner: unknown key; did you mean linear"),
        ({"goal": {"max": "loss"}}, "goal.max: should be 'accuracy'"),
        ({"goal": {}}, "goal: set either max or min"),
        ({"halving": {"first": {"epochs": 1}, "keep": 1.0}}, "halving.keep: should be less than 1"),
        ({"sweep": "Rates!"}, "sweep: must be 1 to"),
        ({"vary": {"optimizer.lr": {"each": [math.inf]}}}, "not a finite number"),
        ({"vary": {"optimizer.lr": {"each": [[math.nan], 1]}}}, "not a finite number"),
        ({"vary": {"train.epochs": {"linear": [1, 3]}}}, "train.epochs is the same for all trials"),
        ({"vary": {"final": {"linear": [1, 3]}}}, "final is the same for all trials"),
        (
            {"vary": {"data.fold": {"linear": [1, 2]}, "data.fold.hold": {"each": [1]}}},
            "vary.data.fold.hold: is a part of data.fold, which is varied as well",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        sweep_of(**changes)
    assert "\n" not in str(raised.value)
