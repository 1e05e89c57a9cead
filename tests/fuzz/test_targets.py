"""A thousandth of `make fuzz`, and the same targets with what hypothesis thinks of."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.cases import run_case
from tests.fuzz.targets import TARGETS, Target, outcome_of

_CASES = 1000
_SHARES = sum(target.share for target in TARGETS)
BY_NAME = {target.name: target for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_input_has_an_outcome_that_is_allowed(target: Target) -> None:
    """The cases are always the same; `make fuzz` takes new ones each time."""
    count = max(20, round(_CASES * target.share / _SHARES))
    outcomes: Counter[str] = Counter()
    for seed in range(count):
        outcome, trace = run_case(target, seed)
        assert not trace, f"--target {target.name} --seed {seed}\n{trace}"
        outcomes[outcome] += 1
    assert outcomes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=20,
)
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(st.sampled_from(["index", "picture", "tar", "manifest"]), st.binary(max_size=2000))
def test_any_bytes(name: str, data: bytes) -> None:
    outcome_of(BY_NAME[name], data)


@QUICK
@given(st.sampled_from(["pattern", "address", "redaction"]), st.text(max_size=200))
def test_any_text(name: str, text: str) -> None:
    outcome_of(BY_NAME[name], text)


@QUICK
@given(st.dictionaries(st.sampled_from(["RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_JOB_ID",
                                        "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "PET_NNODES",
                                        "JOB_COMPLETION_INDEX", "WORKER_NODES", "MASTER_ADDR",
                                        "WORKER_STORE_DEADLINE_SECONDS"]),
                       st.text(max_size=9) | st.integers().map(str)))  # fmt: skip
def test_any_environment(env: dict[str, str]) -> None:
    outcome_of(BY_NAME["environment"], env)
