"""Killed anywhere, resumed on any ranks and threads: the same batches, samples as often as planned."""

import copy
import io
import itertools
import random
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.jobs.test_train import global_batches
from tests.support.processes import Run, Start, Write, in_fresh_process
from tests.support.stores import keys
from worker.data.epoch_plan import EpochPlan, Ids
from worker.data.index_tars import index_tars
from worker.data.tar_source import find_tars
from worker.job.open_job import open_job
from worker.manifest import check_manifest
from worker.store import Store, open_store

IMAGES, EPOCHS, BATCH = 4000, 3, 48
Planned = Callable[[int], Ids]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4000 tiny pictures, an eighth of them of the second class, in 13 uneven shards."""
    folder = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(0)
    cuts = np.sort(generator.choice(np.arange(1, IMAGES), 12, replace=False)).tolist()
    bounds = [0, *cuts, IMAGES]
    for shard, (first, stop) in enumerate(itertools.pairwise(bounds)):
        with tarfile.open(folder / f"many-{shard:02d}.tar", "w") as tar:
            for number in range(first, stop):
                pixels = generator.integers(0, 128, (20, 20, 3), dtype=np.uint8)
                rare = int(number % 8 == 0)
                pixels[..., rare] += 100
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG")
                label = str(rare).encode()
                for suffix, data in (("jpg", buffer.getvalue()), ("cls", label)):
                    info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    index_tars(
        find_tars(str(folder)),
        None,
        "label",
        error_budget=0.0,
        threads=2,
        max_pixels=None,
        advance=lambda done: None,
    )
    return folder


@pytest.fixture
def long_job(many: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "version": 1,
        "job": "many",
        "output": f"{tmp_path}/run/",
        "data": {"train": f"{many}/many-{{00..12}}.tar", "image_size": 16},
        "model": {"backbone": "shufflenet_v2_x0_5"},
        "optimizer": {"name": "adam", "lr": 1e-3, "groups": [{"match": "*"}]},
        "train": {"epochs": EPOCHS, "batch_size": BATCH},
        "checkpoint": {"every_steps": 7},
        "record": {"samples": True},
    }


def require_as_planned(batches: dict[int, list[int]], epochs: int, planned: Planned) -> None:
    """Every sample as often as planned in each epoch, in batches of the right size."""
    images = int(planned(0).sum())
    count = -(-images // BATCH)
    assert sorted(batches) == list(range(count * epochs))
    for epoch in range(epochs):
        steps = range(epoch * count, (epoch + 1) * count)
        assert [len(batches[step]) for step in steps[:-1]] == [BATCH] * (count - 1)
        drawn = [sample for step in steps for sample in batches[step]]
        assert np.array_equal(np.bincount(drawn, minlength=IMAGES), planned(epoch))


def planned_for(job: dict[str, Any]) -> Planned:
    """How often each sample is to be seen; `of_epoch` has property tests of its own."""
    opened = open_job(check_manifest(job, "job"))
    found = opened.multiplicities
    return found.of_epoch if found else lambda _: np.ones(IMAGES, np.int64)


def commits(store: Store) -> set[str]:
    return {key for key in keys(store) if key.startswith("commits/")}


SAMPLED = {"balance": 0.7, "fold": {"of": 5, "hold": 2}}


@pytest.mark.e2e
@pytest.mark.parametrize("data", [{}, SAMPLED], ids=["plain", "sampled"])
def test_killed_again_and_again_on_other_ranks_and_threads(
    start: Start,
    run: Run,
    write: Write,
    long_job: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: dict[str, Any],
) -> None:
    long_job["data"] |= data
    planned = planned_for(long_job)
    whole = copy.deepcopy(long_job) | {"output": f"{tmp_path}/whole/"}
    assert run("train", write(whole)).code == 0
    expected = global_batches(open_store(whole["output"]))
    require_as_planned(expected, EPOCHS, planned)

    store = open_store(long_job["output"])
    seed = random.randrange(1 << 32)
    print(f"killed as seed {seed} says")
    chance = random.Random(seed)
    for ranks, threads in ((1, 0), (2, 1), (4, 3), (3, 1)):
        monkeypatch.setenv("WORKER_LOADER_THREADS", str(threads))
        before = commits(store)
        process = start("train", "--nproc", str(ranks), write(long_job))
        deadline = time.monotonic() + 60
        while not commits(store) - before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1))
        process.send(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
    monkeypatch.setenv("WORKER_LOADER_THREADS", "1")
    ended = run("train", write(long_job))
    assert ended.code == 0, ended.err
    assert "attempt 5 resumes after step" in ended.err
    found = global_batches(store)
    require_as_planned(found, EPOCHS, planned)
    assert found == expected
    audit, images = run("audit", long_job["output"]), planned(0).sum()
    assert (
        audit.out == f"epochs 1 to 3: {images} of {images} samples trained on, 0 lost, 0 repeated\n"
    )


def drop_one(ids: Ids) -> Ids:
    return ids[1:]


def repeat_one(ids: Ids) -> Ids:
    """Take a sample once more in place of another one."""
    return np.concatenate([ids[:1], ids[:1], ids[2:]])


def train_with_fault(manifest: str, fault: Callable[[Ids], Ids]) -> None:
    """`worker train`, but with another plan for step 5."""
    from worker.cli import main

    batch = EpochPlan.batch

    def faulty(self: EpochPlan, step: int, rank: int = 0, world_size: int = 1) -> Ids:
        ids = batch(self, step, rank, world_size)
        return fault(ids) if step == 5 and rank == 1 else ids

    EpochPlan.batch = faulty  # type: ignore[method-assign]
    main(["train", "--nproc", "2", manifest])


def test_one_dropped_sample_is_found(run: Run, write: Write, long_job: dict[str, Any]) -> None:
    long_job["train"]["epochs"] = 1
    in_fresh_process(train_with_fault, write(long_job), drop_one)
    found = global_batches(open_store(long_job["output"]))
    with pytest.raises(AssertionError):
        require_as_planned(found, 1, planned_for(long_job))
    audit = run("audit", long_job["output"])
    assert audit.code == 65
    assert "epoch 1: 3999 of 4000 samples trained on, 1 lost, 0 repeated\n  lost: " in audit.out


def test_one_more_and_one_less_than_planned_are_found(
    run: Run, write: Write, long_job: dict[str, Any]
) -> None:
    long_job["train"]["epochs"] = 1
    long_job["data"] |= SAMPLED
    planned = planned_for(long_job)(0)
    assert planned.max() > 1
    assert planned.min() == 0
    in_fresh_process(train_with_fault, write(long_job), repeat_one)
    audit = run("audit", long_job["output"])
    assert audit.code == 65
    images = planned.sum()
    assert f"epoch 1: {images} of {images} samples trained on, 1 lost, 1 repeated" in audit.out
