"""Broken samples: noticed, named, counted, left out, and ended by when there are too many."""

import json
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.servers import free_port, wait_until
from tests.support.evaluations import read_confusion
from tests.support.pictures import write_pictures
from tests.support.processes import Job, Run, Start, Write
from tests.support.stores import contents, keys, open_index
from tests.support.tars import put, tar
from worker.data.sidecar import decode_sidecar
from worker.judge.confusion import by_class
from worker.record.ledger_audit import read_ledger, surviving_rows
from worker.store import Store, open_store


def flip_a_bit(store: Store, shard: int = 1, sample: int = 2) -> tuple[str, bytes]:
    """Damage one image; returns the shard's name and its bytes before."""
    entry = open_index(store.uri).shards[shard]
    rows = decode_sidecar(store.get(entry.sidecar), entry, None)
    whole = store.get(entry.name)
    at = int(rows[sample]["offset"]) + int(rows[sample]["image_offset"]) + 200
    store.put(entry.name, whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    return entry.name, whole


def listed(output: Store, name: str = "train") -> list[dict[str, Any]]:
    """The bad samples in the record of the last attempt."""
    key = max(key for key in keys(output) if key.endswith(f"bad-samples/{name}.json"))
    found: list[dict[str, Any]] = json.loads(output.get(key))
    return found


@pytest.mark.parametrize("ranks", [1, 3])
def test_within_the_budget_a_sample_is_left_out(
    ranks: int, run: Run, write: Write, job: Job, damaged: Store
) -> None:
    name, _ = flip_a_bit(damaged)
    first = open_index(damaged.uri).shards[0].samples
    job["data"] |= {"train": damaged.uri, "error_budget": 0.02}  # one of 52
    ended = run("train", "--nproc", str(ranks), write(job))
    assert ended.code == 0, ended.err
    warnings = [event for event in ended.events if event["level"] == "warning"]
    assert len(warnings) == 1  # once, though met in both epochs
    assert warnings[0]["message"].startswith(f"left out (altered): {damaged.uri}{name}: sample 2")
    output = open_store(job["output"])
    assert [(row["id"], row["reason"]) for row in listed(output)] == [(first + 2, "altered")]
    audit = run("audit", job["output"])
    assert audit.code == 0
    assert audit.out == (
        f"epoch 1: 51 of 52 samples trained on, 0 lost, 0 repeated, 1 left out as bad\n"
        f"  left out: {first + 2} ({name}, sample 2)\n"
        f"epoch 2: 51 of 52 samples trained on, 0 lost, 0 repeated, 1 left out as bad\n"
        f"  left out: {first + 2} ({name}, sample 2)\n"
    )


def test_ranks_see_the_same_batches_around_a_hole(
    run: Run, write: Write, job: Job, damaged: Store, tmp_path: Path
) -> None:
    flip_a_bit(damaged)
    job["data"] |= {"train": damaged.uri, "error_budget": 0.02}
    found = []
    for ranks in (1, 2):
        job["output"] = f"{tmp_path}/run-{ranks}/"
        assert run("train", "--nproc", str(ranks), write(job)).code == 0
        rows = surviving_rows(read_ledger(open_store(job["output"])))
        found.append(rows[np.lexsort((rows[:, 1], rows[:, 0]))])
    assert np.array_equal(found[0], found[1])
    assert (found[0] < 0).sum() == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_past_the_budget_what_was_done_is_kept_and_a_repair_goes_on(
    ranks: int, run: Run, write: Write, job: Job, damaged: Store
) -> None:
    name, whole = flip_a_bit(damaged)
    job["data"] |= {"train": damaged.uri, "error_budget": 0}
    job["train"] |= {"batch_size": 4}
    ended = run("train", "--nproc", str(ranks), write(job))
    assert ended.code == 65, ended.err
    last = [event["message"] for event in ended.events if event["level"] == "error"]
    assert len(last) == 1
    assert "data.train: 1 of 52 samples are bad, more than data.error_budget, 0, allows" in last[0]
    assert f"{name}: sample 2, byte" in last[0]
    output = open_store(job["output"])
    commits = [key for key in keys(output) if key.startswith("commits/")]
    assert len(commits) == 1  # of the step that met it
    again = run("train", "--nproc", str(ranks), write(job))
    assert again.code == 65  # at once: nothing has changed
    assert '"event": "step"' not in again.err
    damaged.put(name, whole)
    repaired = run("train", "--nproc", str(ranks), write(job))
    assert repaired.code == 0, repaired.err
    assert "attempt 3 resumes after step" in repaired.err
    audit = run("audit", job["output"])
    assert audit.code == 0
    assert audit.out.count("1 left out as bad") == 1  # of the epoch in which it was


def test_training_and_validation_in_one_folder_are_not_confused(
    run: Run, write: Write, job: Job, dataset: Path, tmp_path: Path
) -> None:
    """Of two patterns in one folder, each with its own images: by the confusion matrix."""
    store = open_store(f"{tmp_path}/both")
    counts = {}
    for split in ("train", "val"):
        source = open_store(f"{dataset}/{split}")
        tars = [key for key in keys(source) if key.endswith(".tar")]
        counts[split] = len(tars)
        for number, key in enumerate(tars):
            store.put(f"{split}-{number:06d}.tar", source.get(key))
    assert run("index", store.uri).code == 0
    job["data"] |= {
        split: f"{store.uri}{split}-{{000000..{count - 1:06d}}}.tar"
        for split, count in counts.items()
    }
    ended = run("train", write(job))
    assert ended.code == 0, ended.err
    output = open_store(job["output"])
    key = max(key for key in keys(output) if key.endswith(".npz"))
    assert by_class(read_confusion(output, key), 2)[0].tolist() == [7, 7]
    assert not [event for event in ended.events if event["level"] == "warning"]


def test_a_missing_shard_is_named(run: Run, write: Write, job: Job, damaged: Store) -> None:
    entry = open_index(damaged.uri).shards[1]
    damaged.delete(entry.name)
    job["data"] |= {"train": damaged.uri, "error_budget": 0.5}
    ended = run("train", write(job))
    assert ended.code == 0, ended.err
    rows = listed(open_store(job["output"]))
    assert len(rows) == entry.samples
    assert {row["reason"] for row in rows} == {"missing"}
    assert all(f"{entry.name}: sample" in row["text"] for row in rows)


def test_what_decodes_to_nothing_whole_is_counted(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    write_pictures(folder, 26)
    half = folder / "red" / "007.jpg"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    store = open_store(f"{tmp_path}/half")
    paths = sorted(folder.rglob("*.jpg"))
    members = [
        member
        for path in paths
        for member in (
            (f"{path.parent.name}/{path.stem}.cls", path.parent.name.encode()),
            (f"{path.parent.name}/{path.stem}.jpg", path.read_bytes()),
        )
    ]
    put(store.uri, one=tar(members))
    assert run("index", store.uri).code == 0
    job["data"] |= {"train": store.uri, "error_budget": 0.02}
    ended = run("train", "--nproc", "2", write(job))
    assert ended.code == 0, ended.err
    (row,) = listed(open_store(job["output"]))
    assert row["reason"] == "undecodable"
    assert "(red/007): cannot be decoded" in row["text"]


def test_bombs_are_refused_by_the_manifests_limit(
    run: Run, write: Write, job: Job, dataset: Path
) -> None:
    job["data"] |= {"max_pixels": 1600}  # the smallest are 40 x 40
    ended = run("train", write(job))
    assert ended.code == 65
    assert "pixels; data.max_pixels allows no more than 1600" in ended.err


def test_bad_validation_samples_count_for_themselves(
    run: Run, write: Write, job: Job, dataset: Path, tmp_path: Path
) -> None:
    store = open_store(f"{tmp_path}/val")
    for key, data in contents(open_store(f"{dataset}/val")).items():
        store.put(key, data)
    name, whole = flip_a_bit(store, shard=0, sample=1)
    job["data"] |= {"val": store.uri, "error_budget": 0.001}  # which allows one of any number
    assert run("train", "--nproc", "2", write(job)).code == 0
    output = open_store(job["output"])
    assert [row["id"] for row in listed(output, "val")] == [1]
    accuracy = json.loads(output.get("done.json"))["accuracy"]
    assert (accuracy * 13) == pytest.approx(round(accuracy * 13))
    job["output"] += "strict/"
    job["data"] |= {"error_budget": 0}
    ended = run("train", write(job))
    assert ended.code == 65
    assert "data.val: 1 of 14 samples are bad" in ended.err
    store.put(name, whole)
    repaired = run("train", write(job))
    assert repaired.code == 0, repaired.err
    assert "resumes after step 5 of 10" in repaired.err


def test_a_validation_set_that_is_bad_altogether(
    run: Run, write: Write, job: Job, dataset: Path, tmp_path: Path
) -> None:
    store = open_store(f"{tmp_path}/val")
    for key, data in contents(open_store(f"{dataset}/val")).items():
        store.put(key, b"" if key.endswith(".tar") else data)
    job["data"] |= {"val": store.uri, "error_budget": 0.9}
    ended = run("train", "--nproc", "2", write(job))
    assert ended.code == 65
    assert "data.val: 14 of 14 samples are bad" in ended.err


def test_bad_samples_are_a_metric(
    start: Start, write: Write, job: Job, damaged: Store, monkeypatch: Any
) -> None:
    flip_a_bit(damaged)
    job["data"] |= {"train": damaged.uri, "error_budget": 0.04}
    job["train"]["epochs"] = 50
    port = free_port()
    monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
    running = start("train", write(job))
    running.wait_for("left out (altered)")

    def scrape() -> list[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            text: str = response.read().decode()
        used = re.search(r"^worker_error_budget_used_ratio\{.* 0\.5$", text, re.MULTILINE)
        return text.splitlines() if used else []

    lines = wait_until(scrape, 60, lambda: "half of the budget is not used")
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    (line,) = [line for line in lines if "bad_samples_total{" in line]
    assert 'reason="altered"' in line
    assert line.endswith(" 1.0")


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("WORKER_LOADER_THREADS", "two", "must be a whole number from 0, not 'two'"),
        ("WORKER_READ_MEMORY_MIB", "1", "must be a whole number from 16, not '1'"),
        ("WORKER_SCRATCH_GIB", "-1", "must be a whole number from 1, not '-1'"),
    ],
)
def test_wrong_settings_are_found_before_anything_is_written(
    name: str, value: str, complaint: str, run: Run, write: Write, job: Job, monkeypatch: Any
) -> None:
    monkeypatch.setenv(name, value)
    ended = run("train", write(job))
    assert ended.code == 78
    assert f"{name}: {complaint}" in ended.err
    assert keys(open_store(job["output"])) == []


def test_a_gpu_decoder_needs_a_gpu(run: Run, write: Write, job: Job) -> None:
    job["data"]["decoder"] = "cuda"
    if torch.cuda.device_count():
        pytest.skip("there is one")
    ended = run("train", write(job))
    assert ended.code == 78
    assert "data.decoder: cuda needs a GPU" in ended.err


def test_training_with_scratch_and_everything_random(
    run: Run, write: Write, job: Job, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("WORKER_SCRATCH", str(tmp_path / "scratch"))
    job["data"]["augment"] = {
        "randaugment": {"operations": 1},
        "jitter": {"brightness": 0.2},
        "erasing": 0.2,
        "mixup": 0.2,
        "cutmix": 1.0,
    }
    outputs = []
    for ranks in (1, 2):
        job["output"] = f"{tmp_path}/run-{ranks}/"
        ended = run("train", "--nproc", str(ranks), write(job))
        assert ended.code == 0, ended.err
        outputs.append(open_store(job["output"]))
        assert run("audit", job["output"]).out.startswith("epochs 1 to 2: 52 of 52")
    assert list((tmp_path / "scratch").iterdir())
    one, two = (np.unique(surviving_rows(read_ledger(out)), axis=0) for out in outputs)
    assert np.array_equal(one, two)
