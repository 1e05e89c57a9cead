"""Folds, shares, balance and leave-out lists as settings of a job."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.packs import pack_folder
from tests.support.pictures import write_pictures
from tests.support.processes import Run, Write
from tests.support.stores import open_reader
from worker.data.epoch_plan import sample_ids
from worker.errors import ConfigurationError
from worker.job.job import Job
from worker.job.open_job import open_job
from worker.manifest import check_manifest


def opened(job: dict[str, Any]) -> Job:
    return open_job(check_manifest(job, "job"))


def trained_on(job: Job, epoch: int = 0) -> list[int]:
    plan = job.plan(epoch)
    return np.concatenate([sample_ids(plan.batch(step)) for step in range(plan.steps)]).tolist()


def test_the_fold_that_is_held_out_is_validated_on(job: dict[str, Any]) -> None:
    del job["data"]["val"]
    held: list[int] = []
    for hold in range(3):
        found = opened(job | {"data": job["data"] | {"fold": {"of": 3, "hold": hold}}})
        assert found.val
        assert found.val.ids is not None
        assert sorted([*trained_on(found), *found.val.ids.tolist()]) == list(range(52))
        assert f"fold {hold} of 3 held out" in found.identity["data.sampling"]
        held += found.val.ids.tolist()
    assert sorted(held) == list(range(52))


def test_a_list_of_keys_is_left_out(job: dict[str, Any], tmp_path: Path) -> None:
    reader = open_reader(job["data"]["train"])
    (tmp_path / "wrong.txt").write_text(f"{reader.key(7)}\r\n\r\nnot/there\r\n")
    job["data"]["without"] = f"{tmp_path}/wrong.txt"
    found = opened(job)
    assert sorted(trained_on(found)) == sorted(set(range(52)) - {7})
    assert found.identity["data.sampling"].startswith("without 2 keys (")
    assert found.val
    assert found.val.samples == 14


def test_a_list_that_cannot_be_used(job: dict[str, Any], tmp_path: Path) -> None:
    job["data"]["without"] = f"{tmp_path}/wrong.txt"
    with pytest.raises(ConfigurationError, match="data.without: .*no such file; check"):
        opened(job)
    for text, complaint in (
        (b"\n", "is empty"),
        (b"\xff", "not UTF-8"),
        (b"a\nb", "nor is any other of its 2 lines"),
    ):
        (tmp_path / "wrong.txt").write_bytes(text)
        with pytest.raises(ConfigurationError, match=f"data.without: .*{complaint}"):
            opened(job)


def test_nothing_left_of_a_class_is_refused(job: dict[str, Any], tmp_path: Path) -> None:
    reader = open_reader(job["data"]["train"])
    blue = [reader.key(n) for n in range(52) if reader.read(n).label == 0]
    (tmp_path / "wrong.txt").write_text("\n".join(blue))
    job["data"]["without"] = f"{tmp_path}/wrong.txt"
    with pytest.raises(ConfigurationError, match="no image of the class 'blue' is left"):
        opened(job)


def test_weights_follow_what_is_seen(job: dict[str, Any], tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 20)
    for number in range(15):
        (tmp_path / f"photos/red/{number:03d}.jpg").unlink()
    pack_folder(tmp_path / "photos", f"{tmp_path}/uneven")
    job["data"] |= {"train": f"{tmp_path}/uneven", "balance": 1.0}
    job["train"]["class_weights"] = "balanced"
    found = opened(job)
    assert found.samples_per_epoch == 25
    # One class has 13 places and the other 12, of a total that stays 25.
    assert found.criterion.class_weights == pytest.approx((25 / 26, 25 / 24))
    job["data"]["balance"] = 0.0
    assert opened(job).criterion.class_weights == pytest.approx((25 / 40, 2.5))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"fold": {"of": 3, "hold": 3}, "val": None}, "data.fold: hold must be below of, 3"),
        ({"fold": {"of": 3, "hold": 0}}, "data: set either val or fold"),
        ({"share": 0}, "data.share: should be greater than 0"),
        ({"balance": 1.5}, "data.balance: should be less than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other(
    job: dict[str, Any], data: dict[str, Any], complaint: str
) -> None:
    job["data"] |= data
    with pytest.raises(ConfigurationError, match=complaint):
        opened(job)


def test_a_job_with_folds_and_balance_ends_with_a_clean_audit(
    run: Run, write: Write, job: dict[str, Any]
) -> None:
    del job["data"]["val"]
    job["data"] |= {"fold": {"of": 4, "hold": 1}, "balance": 0.5}
    plan = run("plan", write(job))
    assert "sampling   balance 0.5, fold 1 of 4 held out" in plan.out
    ended = run("train", "--nproc", "2", write(job))
    assert ended.code == 0, ended.err
    assert "validation accuracy" in ended.err
    audit = run("audit", job["output"])
    assert audit.code == 0
    assert "0 lost, 0 repeated" in audit.out
    job["data"]["fold"]["hold"] = 2
    assert run("train", write(job)).code == 78
