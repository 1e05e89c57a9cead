"""Outputs of different kinds do not share an address."""

from pathlib import Path

import pytest

from worker.errors import ConfigurationError
from worker.store import open_store
from worker.store.output_kinds import DATASET, JOB, MODEL, PREDICTION, SWEEP, require_no_other_kind

MARKS = {
    JOB: "attempts/000001.json",
    SWEEP: "sweep.json",
    DATASET: "index.json",
    PREDICTION: "predictions/plan.json",
    MODEL: "final/model.json",
}


@pytest.mark.parametrize("there", MARKS)
@pytest.mark.parametrize("own", MARKS)
def test_each_kind_is_refused_by_all_others(there: str, own: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    require_no_other_kind(store, own, "use another")
    store.put(MARKS[there], b"{}")
    if own == there:
        require_no_other_kind(store, own, "use another")
        return
    with pytest.raises(ConfigurationError, match=rf"holds {there} \({MARKS[there]}\); use another"):
        require_no_other_kind(store, own, "use another")


def test_the_model_of_a_job_is_its_own(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put(MARKS[MODEL], b"{}")
    store.put(MARKS[JOB], b"{}")
    require_no_other_kind(store, JOB, "use another")
    with pytest.raises(ConfigurationError, match="holds a job"):
        require_no_other_kind(store, MODEL, "use another")
