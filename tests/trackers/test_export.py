"""A run arrives in trackers once, however often it was stopped and exported."""

import os
import signal
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench.servers import free_port
from tests.support.processes import Job, Run, Start, Write
from worker.record.events import EvaluationEvent, StepEvent
from worker.report.read_run import Run as ReadRun
from worker.report.read_run import read_run
from worker.store import open_store


@pytest.fixture
def resumed(start: Start, run: Run, write: Write, job: Job) -> ReadRun:
    """A run that was stopped and resumed."""
    job["train"]["epochs"] = 40
    running = start("train", write(job))
    running.wait_for("epoch 2/40")
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    store = open_store(job["output"])
    done = max(int(info.key[8:16]) for info in store.list("commits/"))
    job["train"]["epochs"] = done // 5 + 2
    assert run("train", write(job)).code == 0
    return read_run(store)


def losses(found: ReadRun) -> list[tuple[int, float]]:
    steps = found.history.of(StepEvent)
    return [(event.step, event.loss) for event in steps if event.loss is not None]


def test_tensorboard(run: Run, resumed: ReadRun, job: Job, tmp_path: Path) -> None:
    for _ in range(2):
        ended = run("export", job["output"], "--to", f"tensorboard:{tmp_path}/tb")
        assert ended.code == 0, ended.err
    (folder,) = (tmp_path / "tb").iterdir()
    (_,) = folder.iterdir()
    reader = EventAccumulator(str(folder)).Reload()
    shown = reader.Scalars("train/loss")
    assert [scalar.step for scalar in shown] == [step for step, _ in losses(resumed)]
    assert [scalar.value for scalar in shown] == pytest.approx([x for _, x in losses(resumed)])
    accuracies = [scalar.value for scalar in reader.Scalars("validation/accuracy")]
    assert accuracies == pytest.approx([e.accuracy for e in resumed.history.of(EvaluationEvent)])
    assert "final/validation_macro_f1" in reader.Tags()["scalars"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cache = Path(os.environ.get("WORKER_CI_CACHE", Path.home() / ".cache/worker-ci"))
    command = [str(cache / "mlflow/bin/mlflow"), "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/ml.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    with (tmp_path / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1)
            break
        except OSError:
            time.sleep(0.2)
    yield url
    process.terminate()
    process.wait()


@pytest.mark.e2e
def test_mlflow(server: str, run: Run, resumed: ReadRun, job: Job) -> None:
    for _ in range(2):
        ended = run("export", job["output"], "--to", f"mlflow:{server}")
        assert ended.code == 0, ended.err
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("worker")
    assert experiment
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [point.step for point in history] == [step for step, _ in losses(resumed)]
    assert [point.value for point in history] == pytest.approx([x for _, x in losses(resumed)])
    assert found.data.params["model.backbone"] == "shufflenet_v2_x0_5"
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "blue-red"


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after a header that belongs to wandb.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    at, parts, block = 7, b"", 32768
    data = bytes(7) + data  # the header counts as part of the first block
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield parts
            parts = b""


@pytest.mark.e2e
def test_wandb(run: Run, resumed: ReadRun, job: Job, tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    for _ in range(2):
        ended = run("export", job["output"], "--to", f"wandb:{tmp_path}/wb")
        assert ended.code == 0, ended.err
    (folder,) = (tmp_path / "wb" / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    record_type: Any = wandb_internal_pb2
    records = map(record_type.Record.FromString, leveldb_records(file.read_bytes()[7:]))
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    shown = [float(row["train/loss"]) for row in rows if "train/loss" in row]
    assert shown == pytest.approx([loss for _, loss in losses(resumed)])


def test_a_folder_that_cannot_be_written_is_one_line(run: Run, write: Write, job: Job) -> None:
    job["train"]["epochs"] = 1
    assert run("train", write(job)).code == 0
    ended = run("export", job["output"], "--to", "tensorboard:/proc/nowhere")
    assert ended.code == 78
    assert "/proc/nowhere: " in ended.err
    assert "Traceback" not in ended.err


def test_a_server_that_does_not_answer_is_given_up(
    run: Run, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    job["train"]["epochs"] = 1
    assert run("train", write(job)).code == 0
    ended = run("export", job["output"], "--to", f"mlflow:http://127.0.0.1:{free_port()}")
    assert ended.code == 69
    assert " cannot be reached; check the address" in ended.err


def test_a_mistake_in_the_address_is_one_line(run: Run, tmp_path: Path) -> None:
    ended = run("export", str(tmp_path), "--to", "comet:x")
    assert ended.code == 78
    assert "none of tensorboard:DIR, mlflow:URL and wandb:DIR" in ended.err
    ended = run("export", f"{tmp_path}/run/", "--to", "mlflow:mlruns")
    assert ended.code == 78
    assert "give the address of the server, as in mlflow:http://HOST:PORT" in ended.err
    ended = run("export", str(tmp_path), "--to", "tensorboard:x")
    assert ended.code == 78
    assert "holds no run" in ended.err
