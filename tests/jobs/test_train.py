"""`worker train` as processes over gloo: what a user relies on from start to end."""

import copy
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import safetensors.torch
import torch

from tests.support.evaluations import read_confusion
from tests.support.packs import pack_folder
from tests.support.processes import Ended, Job, Run, Start, Write
from tests.support.sabotage import slow_steps, two_ranks_per_piece
from tests.support.stores import keys, open_index, open_reader, unfinish
from worker.data.decode_image import ImageSpec, decode
from worker.judge.confusion import by_class
from worker.metrics.run_labels import Owner
from worker.metrics.textfile import textfile
from worker.model.backbone import build_backbone, preprocessing_of
from worker.record.ledger_audit import read_ledger, surviving_rows
from worker.store import Store, open_store

EPOCHS, STEPS = 2, 5  # 52 samples in batches of 12


def global_batches(store: Store) -> dict[int, list[int]]:
    """Step -> sample ids in the order of ranks, as the ledger tells."""
    pieces = sorted(read_ledger(store), key=lambda piece: piece.first)
    rows = surviving_rows(pieces)
    return {int(step): rows[rows[:, 0] == step, 1].tolist() for step in np.unique(rows[:, 0])}


def final_weights(store: Store) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(store.get("final/model.safetensors"))


def done(store: Store) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(store.get("done.json"))
    return result


def with_output(job: Job, output: str, **changes: Any) -> Job:
    changed = copy.deepcopy(job) | {"output": output}
    for path, value in changes.items():
        section, _, key = path.partition("__")
        changed[section][key] = value
    return changed


def train(run: Run, write: Write, job: Job, *options: str) -> Store:
    ended = run("train", *options, write(job))
    assert ended.code == 0, ended.err
    return open_store(job["output"])


def test_a_job_from_start_to_end_through_s3(
    run: Run, write: Write, job: Job, pictures: Path, bucket: str
) -> None:
    pack_folder(pictures, f"{bucket}/data")
    job["output"] = f"{bucket}/runs/one/"
    job["model"]["backbone"] = "resnet18"
    job["data"]["train"], job["data"]["val"] = f"{bucket}/data/train/", f"{bucket}/data/val/"
    manifest = Path(write(job)).read_bytes()
    boto3.client("s3").put_object(Bucket=bucket[5:], Key="jobs/job.yaml", Body=manifest)
    ended = run("train", f"{bucket}/jobs/job.yaml")
    assert ended.code == 0, ended.err

    store = open_store(job["output"])
    patterns = [
        r"attempts/000001\.json",
        r"checkpoints/000000(05|10)-000001/(model|optimizer)\.safetensors",
        r"checkpoints/000000(05|10)-000001/state\.json",
        r"commits/000000(05|10)-000001\.json",
        r"done\.json",
        r"final/(model\.(json|safetensors)|judgement\.json|README\.md)",
        r"manifest\.json",
        r"publications/000001\.json",
        r"records/000001/evaluations/val-000000(05|10)\.(json|npz)",
        r"records/000001/(environment|plan|progress)\.json",
        r"records/000001/history/\d{6}\.jsonl",
        r"records/000001/samples/\d{8}-0000\.npy",
    ]
    for key in keys(store):
        assert any(re.fullmatch(pattern, key) for pattern in patterns), key
    for pattern in patterns:
        assert any(re.fullmatch(pattern, key) for key in keys(store)), pattern

    assert done(store)["accuracy"] >= 0.9
    card = json.loads(store.get("final/model.json"))
    assert card["classes"] == ["blue", "red"]
    assert card["preprocessing"]["crop_size"] == 32
    history = [
        json.loads(line)
        for key in keys(store)
        if "/history/" in key
        for line in store.get(key).splitlines()
    ]
    steps = [event for event in history if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 11))
    assert steps[0]["rates"] == {"head": 1e-3, "*": pytest.approx(1e-4)}
    assert [e["epoch"] for e in history if e["event"] == "evaluation"] == [1, 2]
    evaluation = [event for event in history if event["event"] == "evaluation"][-1]
    (logged,) = [e for e in ended.events if e.get("event") == "evaluation" and e["epoch"] == 2]
    confusion = read_confusion(store, "records/000001/evaluations/val-00000010.npz")
    totals, right = by_class(confusion, 2)
    assert totals.tolist() == [7, 7]
    assert evaluation["accuracy"] == pytest.approx(right.sum() / 14)
    assert logged["accuracy"] == evaluation["accuracy"] == pytest.approx(evaluation["value"])
    assert logged["low"] <= logged["value"] <= logged["high"]
    figures = json.loads(store.get("final/judgement.json"))["validation"]
    recalls = [one["recall"]["value"] for one in figures["classes"]]
    assert recalls == pytest.approx((right / 7).tolist())
    assert evaluation["top5_accuracy"] is None  # of two classes

    again = run("train", f"{bucket}/jobs/job.yaml")
    assert again.code == 0
    assert "was completed by attempt 1: " in again.err
    assert newest_attempts(store) == 1


def newest_attempts(store: Store) -> int:
    return len(list(store.list("attempts/")))


def test_one_and_two_and_three_ranks_see_the_same_global_batches(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    batches = []
    for ranks in (1, 2, 3):
        store = train(
            run, write, with_output(job, f"{tmp_path}/ranks-{ranks}/"), "--nproc", str(ranks)
        )
        batches.append(global_batches(store))
    assert len(batches[0]) == EPOCHS * STEPS
    assert batches[0] == batches[1] == batches[2]
    for epoch in range(EPOCHS):
        ids = [i for step in range(epoch * STEPS, (epoch + 1) * STEPS) for i in batches[0][step]]
        assert sorted(ids) == list(range(52))


@pytest.mark.parametrize("ranks", [1, 2])
def test_stopped_and_resumed_ends_with_the_same_bytes(
    ranks: int, run: Run, start: Start, write: Write, job: Job, tmp_path: Path
) -> None:
    """EfficientNet, for its dropout: random draws must not depend on where a run was cut."""
    job["model"]["backbone"] = "efficientnet_b0"
    nproc = ("--nproc", str(ranks))
    whole = train(run, write, with_output(job, f"{tmp_path}/whole/"), *nproc)

    job["output"] = f"{tmp_path}/cut/"
    store = open_store(job["output"])
    codes: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        slow = functools.partial(slow_steps, 1.0)  # the job must not end before the signal
        process = start("train", *nproc, write(job), sabotage=slow)
        process.wait_for('"event": "step"' if not codes else '"event": "start"')
        process.send(number)
        ended = process.wait()
        codes.append(ended.code)
        assert ended.code == 75, ended.err
        assert "start again to resume" in ended.events[-1]["message"]
        told = f"{number.name}: stopping after this step"
        assert [event["message"] for event in ended.events].count(told) == 1
        assert "Traceback" not in ended.err
    train(run, write, job, *nproc)

    assert newest_attempts(store) == 4
    assert global_batches(store) == global_batches(whole)
    assert store.get("final/model.safetensors") == whole.get("final/model.safetensors")


def test_killed_and_resumed_on_other_ranks_loses_and_repeats_nothing(
    run: Run, start: Start, write: Write, job: Job, tmp_path: Path
) -> None:
    job["checkpoint"] = {"every_steps": 2}
    job["train"]["epochs"] = 3
    store = open_store(job["output"])
    for ranks, commit in ((2, 1), (3, 2)):
        slow = functools.partial(slow_steps, 0.5)  # the job must not end before the signal
        process = start("train", "--nproc", str(ranks), write(job), sabotage=slow)
        deadline = time.monotonic() + 120
        while len([k for k in keys(store) if k.startswith("commits/")]) < commit:
            assert time.monotonic() < deadline, "no commit came"
            time.sleep(0.02)
        process.send(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
    train(run, write, job)
    ended = run("audit", job["output"])
    assert ended.code == 0, ended.err
    assert ended.out == "epochs 1 to 3: 52 of 52 samples trained on, 0 lost, 0 repeated\n"

    key = next(key for key in keys(store) if "/samples/" in key)
    rows = np.load(io.BytesIO(store.get(key)))
    lost = rows[3, 1]
    assert lost >= 0
    buffer = io.BytesIO()
    np.save(buffer, np.delete(rows, 3, axis=0))
    store.put(key, buffer.getvalue())
    ended = run("audit", job["output"])
    assert ended.code == 65
    assert f"lost: {lost} (shard-" in ended.out


@pytest.mark.parametrize(
    ("plan", "writers"), [(None, {"0000"}), (two_ranks_per_piece, {"0000", "0002"})]
)
def test_one_rank_writes_the_ledger_for_its_neighbors(
    plan: Callable[[], None] | None, writers: set[str], run: Run, write: Write, job: Job
) -> None:
    job["checkpoint"] = {"every_steps": 3}
    ended = run("train", "--nproc", "3", write(job), sabotage=plan)
    assert ended.code == 0, ended.err
    pieces = [key for key in keys(open_store(job["output"])) if "/samples/" in key]
    spans = {key.rpartition("-")[0] for key in pieces}
    assert len(spans) == 1  # however many commits there are
    assert set(pieces) == {f"{span}-{writer}.npy" for span in spans for writer in writers}
    assert run("audit", job["output"]).code == 0


def test_a_damaged_checkpoint_means_the_one_before(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    whole = train(run, write, with_output(job, f"{tmp_path}/whole/"))
    store = train(run, write, job)
    unfinish(store)
    for key in ("final/model.safetensors", "final/model.json"):
        store.delete(key)
    newest = "checkpoints/00000010-000001/model.safetensors"
    data = bytearray(store.get(newest))
    data[len(data) // 2] ^= 1
    store.put(newest, bytes(data))
    ended = run("train", write(job))
    assert ended.code == 0, ended.err
    assert "checkpoint 00000010-000001 is not valid (model.safetensors was altered)" in ended.err
    assert "attempt 2 resumes after step 5 of 10" in ended.err
    assert "lets the job resume after step 5; 5 steps are repeated" in ended.err
    assert store.get("final/model.safetensors") == whole.get("final/model.safetensors")
    assert global_batches(store) == global_batches(whole)


def test_fine_tuning_starts_from_another_jobs_model(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    source = train(run, write, job)
    frozen = with_output(job, f"{tmp_path}/frozen/")
    frozen["model"]["weights"] = f"{source.uri}final/model.safetensors"
    frozen["optimizer"]["groups"] = [
        {"match": "head"},
        {"match": "backbone", "freeze": "always"},
    ]
    before = final_weights(source)
    after = final_weights(train(run, write, frozen, "--nproc", "2"))
    for name, tensor in before.items():
        if name.startswith("fc."):
            assert not torch.equal(tensor, after[name]), name
        else:  # BatchNorm statistics included
            assert torch.equal(tensor, after[name]), name


def test_a_newer_attempt_ends_an_older_one(
    start: Start, write: Write, job: Job, tmp_path: Path
) -> None:
    job["train"]["epochs"] = 50
    process = start("train", write(job))
    process.wait_for('"event": "step"')
    store = open_store(job["output"])
    store.put("attempts/000007.json", store.get("attempts/000001.json"))
    ended = process.wait()
    assert ended.code == 76, ended.err
    assert "attempt 7 of this job has started" in ended.events[-1]["message"]
    commits = len(list(store.list("commits/")))
    assert commits <= 2


def test_a_dead_rank_ends_the_job_for_a_retry(start: Start, write: Write, job: Job) -> None:
    job["train"]["epochs"] = 50
    process = start("train", "--nproc", "2", write(job))
    process.wait_for('"event": "step"')
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    ended = process.wait()
    assert ended.code == 69, ended.err
    assert "rank 1 was killed by SIGKILL" in ended.err
    assert "Traceback" not in ended.err


def test_broken_data_ends_without_retry(run: Run, write: Write, job: Job, tmp_path: Path) -> None:
    original = open_store(job["data"]["train"])
    cut = open_index(original.uri).shards[1].name
    store = open_store(f"{tmp_path}/damaged/")
    for key in keys(original):
        data = original.get(key)
        store.put(key, data[: len(data) // 2] if key == cut else data)
    job["data"]["train"] = store.uri
    ended = run("train", "--nproc", "2", write(job))
    assert ended.code == 65, ended.err
    assert "data.train: " in ended.err
    assert "more than data.error_budget, 0.001, allows" in ended.err
    assert f"{cut}: sample" in ended.err
    assert "Traceback" not in ended.err
    assert not [line for line in ended.err.splitlines() if "retry" in line]


def test_metrics_are_served_while_training(
    start: Start, write: Write, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
    monkeypatch.setenv("WORKER_METRICS_TEXTFILE", str(tmp_path))
    monkeypatch.setenv("WORKER_PUSHGATEWAY", "http://user:hunter2@127.0.0.1:1")
    job["train"]["epochs"] = 50
    process = start("train", write(job))
    process.wait_for('"event": "step"')
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    uri = open_store(job["output"]).uri
    labels = f'job="blue-red",run="{uri}"'
    assert f"worker_steps{{{labels}}} 250.0" in text
    assert f'worker_learning_rate{{group="head",{labels}}} 0.001' in text
    assert float(re.search(r"worker_samples_total\{.*\} (\S+)", text).group(1)) >= 12  # type: ignore[union-attr]
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert ended.code == 75, ended.err
    assert "metrics: WORKER_PUSHGATEWAY does not work" in ended.err
    assert "hunter2" not in ended.err
    written = textfile(str(tmp_path), Owner("blue-red", uri)).read_text()
    assert "worker_last_commit_timestamp_seconds" in written


def refused(ended: Ended, code: int, complaint: str) -> None:
    assert ended.code == code, ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert complaint in ended.events[0]["message"]


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("train__batch", 3, "train.batch: unknown key; did you mean batch_size?"),
        ("train__epochs", "two", "train.epochs: should be a valid integer, not 'two'"),
        ("data__train", "/nowhere", "data.train: file:///nowhere/index.json: no such object"),
        ("model__backbone", "resnet19", "model.backbone: no model 'resnet19'; did you mean resnet"),
        (
            "model__backbone",
            "inception_v3",
            "data.image_size: inception_v3 cannot be trained at 32 pixels; its own size is 299",
        ),
        (
            "model__weights",
            "/nowhere/w.safetensors",
            "model.weights: file:///nowhere/w.safetensors: no such file",
        ),
        (
            "model__weights",
            "IMAGENET",
            "'IMAGENET' is neither an address nor weights of shufflenet_v2_x0_5",
        ),
        ("train__batch_size", 13, "train.batch_size: 13 is not a multiple of the 2 ranks"),
        (
            "optimizer__groups",
            [{"match": "stage4.13"}, {"match": "*"}],
            "optimizer.groups[0].match: 'stage4.13' matches no parameter; nearest: stage4.",
        ),
    ],
)
def test_a_wrong_manifest_is_one_line_and_writes_nothing(
    path: str, value: Any, complaint: str, run: Run, write: Write, job: Job
) -> None:
    section, _, key = path.partition("__")
    job[section][key] = value
    refused(run("train", "--nproc", "2", write(job)), 78, complaint)
    assert not Path(job["output"]).exists()


def test_a_missing_manifest_and_credentials_and_endpoint(
    run: Run, write: Write, job: Job, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run("train", f"{bucket}/job.yaml"), 78, f"manifest {bucket}/job.yaml: no such object")
    refused(run("train", "s3://nobody-has-this/job.yaml"), 78, "no such bucket")
    refused(run("train", "/nowhere/job.yaml"), 78, "no such file")
    job["output"] = f"{bucket}/run/"
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        refused(run("train", write(job)), 78, "AWS_ACCESS_KEY_ID: not set, though AWS_SECRET_ACC")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        ended = run("train", write(job))
        assert ended.code == 69
        assert "http://127.0.0.1:1 cannot be reached" in ended.events[-1]["message"]
        assert "Traceback" not in ended.err
    assert keys(open_store(bucket)) == []


def test_another_experiment_may_not_take_over_an_output(
    run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    store = train(run, write, job)
    before = {key: store.get(key) for key in keys(store)}
    job["model"]["backbone"] = "mobilenet_v3_large"
    complaint = "model.backbone: mobilenet_v3_large here, but shufflenet_v2_x0_5 in the job"
    refused(run("train", write(job)), 78, complaint)
    unfinish(store)
    left = {key: store.get(key) for key in keys(store)}
    assert left.items() <= before.items()
    refused(run("train", write(job)), 78, complaint)
    assert {key: store.get(key) for key in keys(store)} == left


def test_changed_settings_are_said_and_impossible_ones_refused(
    run: Run, write: Write, job: Job
) -> None:
    train(run, write, job)
    store = open_store(job["output"])
    job["optimizer"]["lr"] = 2e-3
    ended = run("train", write(job))
    assert ended.code == 0
    assert "changed since then, without effect: optimizer.lr 0.001 -> 0.002" in ended.err
    unfinish(store)
    job["train"]["epochs"] = 1
    before = keys(store)
    refused(run("train", write(job)), 78, "train.epochs: 1 is 5 steps, but 10 are already done")
    assert keys(store) == before
    job["train"]["epochs"] = 3
    ended = run("train", write(job))
    assert ended.code == 0, ended.err
    assert (
        "changed since the last attempt: optimizer.lr 0.001 -> 0.002; train.epochs 2" in ended.err
    )
    assert done(store)["step"] == 15


def test_a_finished_job_trains_on_where_more_epochs_are_asked_for(
    run: Run, write: Write, job: Job
) -> None:
    train(run, write, job)
    store = open_store(job["output"])
    first = store.get("final/model.safetensors")
    told = (
        "was completed by attempt 1: 2 epochs, 10 steps; nothing to do; to continue training, raise"
    )
    assert told in run("plan", "--resume", write(job)).out
    assert told in run("train", write(job)).err
    job["train"]["epochs"] = 3
    plan = run("plan", "--resume", write(job)).out
    assert "attempt 2 would resume after step 10" in plan
    ended = run("train", write(job))
    assert ended.code == 0, ended.err
    assert "attempt 2 resumes after step 10 of 15" in ended.err
    assert (done(store)["step"], done(store)["epochs"], done(store)["attempt"]) == (15, 3, 2)
    assert store.get("final/model.safetensors") != first
    assert json.loads(store.get("manifest.json"))["train"]["epochs"] == 3
    assert "done" in run("status", job["output"]).out
    job["train"]["epochs"] = 2
    assert "was completed by attempt 2: 3 epochs, 15 steps" in run("train", write(job)).err


def test_a_finished_job_without_its_checkpoint_says_how_to_train_on(
    run: Run, write: Write, job: Job
) -> None:
    train(run, write, job)
    store = open_store(job["output"])
    job["train"]["epochs"] = 3
    store.put("checkpoints/00000005-000001/model.safetensors", b"")
    store.put("checkpoints/00000010-000001/model.safetensors", b"")
    text = "train.epochs: the job is done with 2 epochs, but no intact checkpoint is left"
    ended = run("train", write(job))
    assert ended.code == 78
    assert text in ended.err
    for key in [key for key in keys(store) if key.startswith(("commits/", "checkpoints/"))]:
        store.delete(key)
    for command in ("train", "plan"):
        refused(run(command, write(job)), 78, text)
    assert done(store)["epochs"] == 2


def test_a_plan_tells_how_a_job_would_go_on(run: Run, write: Write, job: Job) -> None:
    assert "would start at step 0" in run("plan", "--resume", write(job)).out
    train(run, write, job)
    store = open_store(job["output"])
    unfinish(store)
    before = keys(store)
    text = run("plan", "--resume", write(job)).out
    assert "attempt 2 would resume after step 10: checkpoint 00000010-000001" in text
    assert "changed    nothing" in text
    store.put("checkpoints/00000010-000001/state.json", b"{}")
    job["optimizer"]["lr"] = 2e-3
    job["checkpoint"] = {"keep": 3}
    ended = run("plan", "--resume", "--json", write(job))
    assert ended.code == 0, ended.err
    standing = json.loads(ended.out)["resume"]
    assert (standing["step"], standing["steps_lost"]) == (5, 5)
    assert standing["passed_over"] == ["00000010-000001"]
    changes = {change["field"]: change["kind"] for change in standing["changes"]}
    assert changes == {"optimizer.lr": "noted", "checkpoint.keep": "silent"}
    job["train"] |= {"batch_size": 26, "seed": 3}
    ended = run("plan", "--resume", write(job))
    assert ended.code == 78
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["train.batch_size", "12", "26", "refused", "with", "exit", "code", "78"] in rows
    assert (
        "train.batch_size: 26 here, but 12 in the job that owns the output; train.seed: 3 here"
        in ended.err
    )
    assert keys(store) == before


def test_wrong_settings_of_the_place_are_one_line(
    run: Run, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "soon")
    complaint = "WORKER_STORE_DEADLINE_SECONDS: must be a number"
    refused(run("train", f"{bucket}/job.yaml"), 78, complaint)


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_accuracy_is_that_of_the_model_that_was_written(
    ranks: int, run: Run, write: Write, job: Job
) -> None:
    """The last batch is uneven, so the ranks' BatchNorm statistics differ before evaluation."""
    job["model"]["backbone"] = "resnet18"
    job["train"]["batch_size"] = 51
    store = train(run, write, job, "--nproc", str(ranks))
    backbone = build_backbone("resnet18", 2, 0, 32)
    backbone.model.load_state_dict(final_weights(store))
    val = open_store(job["data"]["val"])
    index = open_index(val.uri)
    reader = open_reader(val.uri)
    samples = [reader.read(number) for number in range(index.samples)]
    preprocessing = preprocessing_of("resnet18").at(32)
    images = torch.zeros(len(samples), 3, 32, 32, dtype=torch.uint8)
    for sample, out in zip(samples, images, strict=True):
        preprocessing.evaluated(decode(sample.image, ImageSpec(10**6)), out)
    labels = torch.tensor([sample.label for sample in samples])
    with torch.inference_mode():
        outputs = backbone.model.eval()(preprocessing.normalize(images))
    loss = torch.nn.functional.cross_entropy(outputs, labels).item()
    assert done(store)["loss"] == pytest.approx(loss, rel=1e-3)
    assert done(store)["accuracy"] == (outputs.argmax(1) == labels).double().mean().item()


def test_torchrun_starts_the_ranks(write: Write, job: Job) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "--standalone",
            "-m",
            "worker",
            "train",
            write(job),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "attempt 1 starts at step 0 of 10; ranks: 2" in ended.stderr


def test_a_stop_while_waiting_for_other_ranks_is_heeded(
    start: Start, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for rank in (0, 1):
        for name, value in {"RANK": rank, "WORLD_SIZE": 3, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port + rank))  # rank 1 looks where nobody is
        process = start("train", write(job))
        process.wait_for("waiting for the other ranks")
        process.send(signal.SIGTERM)
        ended = process.wait(30)
        assert ended.code == 75, ended.err


@pytest.mark.parametrize("threads", ["0", "2"])
def test_training_images_may_be_smaller(
    run: Run,
    write: Write,
    job: Job,
    tmp_path: Path,
    threads: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKER_LOADER_THREADS", threads)
    job["data"]["image_size"] = {"train": 32, "evaluate": 48}
    job["data"]["augment"]["cutmix"] = 0.5
    assert "48 pixels square, 32 in training" in run("plan", write(job)).out
    store = train(run, write, with_output(job, f"{tmp_path}/{threads}/"), "--nproc", "2")
    card = json.loads(store.get("final/model.json"))
    assert card["preprocessing"]["crop_size"] == 48
    judged = run("evaluate", store.uri, job["data"]["val"])
    figures = json.loads(store.get("final/judgement.json"))["validation"]
    assert f"{figures['accuracy']['value']:.2%}" in judged.out
    job["model"]["backbone"] = "vit_b_32"
    job["data"]["image_size"] = {"train": 32, "evaluate": 64}
    assert "cannot be trained at 32" in run("plan", write(job)).err
