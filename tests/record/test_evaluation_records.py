"""The records of evaluations: of many validations, two are kept."""

from pathlib import Path

import numpy as np
import torch

from tests.judge.test_judgment import predictions, tally_of
from tests.support.stores import keys
from worker.learn.evaluation import Findings
from worker.record.evaluation_records import EvaluationRecords
from worker.store import open_store


def test_validations_are_kept_if_they_are_the_last_or_the_best(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    records = EvaluationRecords(store, attempt=1)
    findings = Findings(
        tally=tally_of(*predictions(20, 2, seed=0)),
        outcomes=np.ones(20, np.uint8),
        picks={},
        logits=None,
        labels=torch.empty(0),
    )
    records.write("test", 3, findings, {})
    for step, best in ((5, None), (10, 5), (15, 10), (20, 10), (25, 10)):
        records.write("val", step, findings, {})
        records.keep(step, best)
    assert keys(store) == [
        f"records/000001/evaluations/{name}"
        for name in (
            *("test-00000003.json", "test-00000003.npz", "val-00000010.json"),
            *("val-00000010.npz", "val-00000025.json", "val-00000025.npz"),
        )
    ]
