"""The shipped batch scripts on a real Slurm cluster of two nodes, against a real MinIO."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ruamel.yaml import YAML

from bench.servers import Server, start_minio, wait_until
from tests.support.finished import finished_model
from tests.support.packs import pack_folder
from tests.support.paths import ROOT
from tests.support.pictures import write_pictures
from tests.support.slurm import Slurm, start_slurm

SCRIPTS = ROOT / "slurm"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
ONE_NODE = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")
ONE_TASK = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
COMMITS = 4  # as many epochs are trained before something happens

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with start_slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


class Place:
    """A user's folder, environment file and bucket; jobs are submitted from there."""

    def __init__(self, slurm: Slurm, server: Server, folder: Path, name: str) -> None:
        self.slurm, self.folder = slurm, folder
        self.s3 = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=server.environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        self.bucket = f"b{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        self.s3.create_bucket(Bucket=self.bucket)
        self.settings = {
            "PATH": f"{Path(sys.executable).parent}:$PATH",
            **server.environment,
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }

    def upload(self, job: dict[str, Any], dataset: Path, name: str = "job") -> str:
        """Put data and manifest into the bucket; returns the manifest's address."""
        for path in dataset.rglob("*"):
            if path.is_file():
                key = f"data/{path.relative_to(dataset)}"
                self.s3.put_object(Bucket=self.bucket, Key=key, Body=path.read_bytes())
        data = {split: f"s3://{self.bucket}/data/{split}/" for split in ("train", "val")}
        manifest = {
            **job,
            "job": name,
            "output": f"s3://{self.bucket}/{name}/",
            "data": {**job["data"], **data},
        }
        path = self.folder / f"{name}.yaml"
        YAML(typ="safe", pure=True).dump(manifest, path)
        self.s3.put_object(Bucket=self.bucket, Key=f"{name}.yaml", Body=path.read_bytes())
        return f"s3://{self.bucket}/{name}.yaml"

    def submit(self, script: str, options: tuple[str, ...], *arguments: str | Path) -> str:
        """Submit a shipped script with the place's environment in its file."""
        file = self.folder / "env"
        file.write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))
        file.chmod(0o600)
        where = (f"--chdir={self.folder}", "--job-name=worker")
        export = f"WORKER_ENV={file}"
        return self.slurm.submit(*where, *options, SCRIPTS / script, *arguments, export=export)

    def commits(self, name: str = "job") -> int:
        """Checkpoints that the job has committed so far and kept."""
        return len(self.keys(f"{name}/commits/"))

    def wait_for_epochs(self, job: str, count: int = COMMITS, name: str = "job") -> None:
        """Wait until the job has trained for some epochs."""

        def look() -> bool:
            assert self.slurm.show(job)["JobState"] != "COMPLETED", "too fast for this test"
            steps = [int(key.split("/")[-1].split("-")[0]) for key in self.keys(f"{name}/commits/")]
            return bool(steps) and max(steps) >= 5 * count

        wait_until(look, 120, lambda: self.log(job))

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for item in found.get("Contents", [])]

    def weights(self, name: str = "job") -> str:
        """Sha256 of the final weights."""
        key = f"{name}/final/model.safetensors"
        body = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return hashlib.sha256(body).hexdigest()

    def log(self, job: str) -> str:
        """What the job has printed, over all its runs."""
        path = self.folder / f"worker-{job}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def place(
    slurm: Slurm, minio: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Place]:
    yield Place(slurm, minio, tmp_path, request.node.nodeid)
    slurm.run("scancel", "--user=root")
    wait_until(lambda: not slurm.run("squeue", "-h"), 60, slurm.logs)


@pytest.fixture
def long_job(job: dict[str, Any]) -> dict[str, Any]:
    """Thirty epochs of five steps."""
    return {**job, "train": {**job["train"], "epochs": 30}, "record": {"samples": False}}


@pytest.fixture(scope="module")
def calm(slurm: Slurm) -> dict[str, str]:
    """The final weights of the job that nothing happened to, by kind."""
    return {}


def test_two_nodes_train_to_the_end(
    place: Place, long_job: dict[str, Any], dataset: Path, calm: dict[str, str]
) -> None:
    job = place.submit("multi-node.sbatch", TWO_NODES, place.upload(long_job, dataset))
    shown = place.slurm.wait(job, "COMPLETED", "FAILED")
    log = place.log(job)
    assert shown["JobState"] == "COMPLETED", log
    assert shown["NumNodes"] == "2"
    assert "all checks passed" in log
    assert "2 in all, 6 images of each batch" in log
    assert "worker ended with 0 after 0 restarts" in log
    calm["weights"] = place.weights()


def resumed_like_calm(place: Place, job: str, calm: dict[str, str]) -> None:
    """The job came back by itself, went on, and ended as if nothing had happened."""
    shown = place.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    log = place.log(job)
    assert shown["JobState"] == "COMPLETED", log
    assert int(shown["Restarts"]) >= 1
    assert len(place.keys("job/attempts/")) == int(shown["Restarts"]) + 1
    assert "resumes after step" in log
    assert place.weights() == calm["weights"], log


def test_the_warning_before_the_time_limit_requeues(
    place: Place, long_job: dict[str, Any], dataset: Path, calm: dict[str, str]
) -> None:
    """Slurm's own timer, which comes up to a minute early."""
    long_job["train"]["epochs"] = 200
    options = (*TWO_NODES, "--time=2", "--signal=B:USR1@80")
    job = place.submit("multi-node.sbatch", options, place.upload(long_job, dataset))
    shown = wait_until(
        lambda: place.slurm.show(job) if place.slurm.show(job)["Restarts"] == "1" else None,
        150,
        lambda: place.log(job),
    )
    assert "worker ended with 75 after 0 restarts" in place.log(job)
    assert shown["JobState"] in ("PENDING", "RUNNING", "COMPLETING")
    stopped = re.search(r"stopped on request after step (\d+), committed", place.log(job))
    assert stopped, place.log(job)
    wait_until(
        lambda: f"resumes after step {stopped[1]}" in place.log(job), 90, lambda: place.log(job)
    )


def test_a_stop_is_requeued_and_ends_with_the_same_weights(
    place: Place, long_job: dict[str, Any], dataset: Path, calm: dict[str, str]
) -> None:
    job = place.submit("multi-node.sbatch", TWO_NODES, place.upload(long_job, dataset))
    place.wait_for_epochs(job)
    place.slurm.run("scancel", "--batch", "--signal=USR1", job)
    resumed_like_calm(place, job, calm)
    assert "worker ended with 75 after 0 restarts" in place.log(job)


def test_a_more_urgent_job_preempts(
    place: Place, long_job: dict[str, Any], dataset: Path, calm: dict[str, str]
) -> None:
    job = place.submit("multi-node.sbatch", TWO_NODES, place.upload(long_job, dataset))
    place.wait_for_epochs(job)
    urgent = place.slurm.submit(
        *("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"),
        "--wrap=sleep 2",
    )
    place.slurm.wait(urgent, "COMPLETED")
    resumed_like_calm(place, job, calm)
    assert "stopped on request" in place.log(job)


def test_a_dead_node_is_survived(
    place: Place, long_job: dict[str, Any], dataset: Path, calm: dict[str, str]
) -> None:
    job = place.submit("multi-node.sbatch", TWO_NODES, place.upload(long_job, dataset))
    place.wait_for_epochs(job)
    place.slurm.kill_node(2)
    try:
        wait_until(lambda: place.slurm.show(job)["Restarts"] == "1", 90, lambda: place.log(job))
    finally:
        place.slurm.start_node(2)
    resumed_like_calm(place, job, calm)


@pytest.mark.parametrize("wrong", ["batch_size", "environment", "path"])
def test_what_is_wrong_is_not_run_again(
    place: Place, job: dict[str, Any], dataset: Path, wrong: str
) -> None:
    if wrong == "batch_size":
        job["train"]["batch_size"] = 13
    if wrong == "path":
        place.settings["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    manifest = place.upload(job, dataset)
    number = place.submit("multi-node.sbatch", TWO_NODES, manifest)
    if wrong == "environment":
        (place.folder / "env").chmod(0o644)
    shown = place.slurm.wait(number, "FAILED", "COMPLETED")
    log = place.log(number)
    assert (shown["ExitCode"], shown["Restarts"]) == ("78:0", "0"), log
    said = {
        "batch_size": "13 is not a multiple of the 2 ranks; start 1 or 13",
        "environment": "chmod 600",
        "path": "worker is not on the PATH; set PATH in",
    }
    assert said[wrong] in log
    assert place.keys("job/attempts/") == []


def test_a_failure_is_tried_again_a_few_times(
    place: Place, job: dict[str, Any], dataset: Path
) -> None:
    manifest = place.upload(job, dataset)
    place.settings |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "WORKER_RETRIES": "1"}
    number = place.submit("one-node.sbatch", ONE_TASK, manifest)
    shown = place.slurm.wait(number, "FAILED", "COMPLETED")
    assert (shown["ExitCode"], shown["Restarts"]) == ("69:0", "1"), place.log(number)
    assert "failed again after 1 retries" in place.log(number)


def test_the_elements_of_an_array_share_a_sweep(
    place: Place, job: dict[str, Any], dataset: Path
) -> None:
    base = place.upload(job, dataset, "base")
    sweep = {
        "version": 1,
        "sweep": "rates",
        "output": f"s3://{place.bucket}/rates/",
        "base": base,
        "vary": {"optimizer.lr": {"each": [1e-4, 1e-3, 1e-2]}},
        "halving": {"first": {"epochs": 1}},
        "goal": {"max": "accuracy"},
    }
    (place.folder / "sweep.json").write_text(json.dumps(sweep))
    array = place.submit("sweep.sbatch", (*ONE_TASK, "--array=0-2"), place.folder / "sweep.json")
    for element in (f"{array}_{n}" for n in range(3)):
        shown = place.slurm.wait(element, "COMPLETED", "FAILED")
        assert shown["JobState"] == "COMPLETED", place.log(element)
    assert "rates/best.json" in place.keys("rates/")
    assert len([key for key in place.keys("rates/results/") if key.endswith(".json")]) == 5


def test_the_elements_of_an_array_share_a_prediction(place: Place, tmp_path: Path) -> None:
    store = place.folder / "images"
    write_pictures(store / "raw", 200)
    pack_folder(store / "raw", str(store / "set"), shard_bytes=20_000)
    model = finished_model(tmp_path / "final")
    out = f"s3://{place.bucket}/predictions-of-all/"
    arguments = (model, f"{store}/set", out, "--embeddings")
    array = place.submit("predict.sbatch", (*ONE_TASK, "--array=0-2"), *arguments)
    for element in (f"{array}_{n}" for n in range(3)):
        shown = place.slurm.wait(element, "COMPLETED", "FAILED")
        assert shown["JobState"] == "COMPLETED", place.log(element)
    assert "predictions-of-all/predictions/index.json" in place.keys("predictions-of-all/")


def test_a_cancelled_job_stays_cancelled(
    place: Place, long_job: dict[str, Any], dataset: Path
) -> None:
    job = place.submit("one-node.sbatch", ONE_NODE, place.upload(long_job, dataset))
    place.wait_for_epochs(job, 1)
    place.slurm.run("scancel", job)
    wait_until(lambda: not place.slurm.run("squeue", "-h"), 60, place.slurm.logs)
    shown = place.slurm.show(job)
    assert (shown["JobState"], shown["Restarts"]) == ("CANCELLED", "0")


def test_apptainer_is_called_with_the_image(
    place: Place, job: dict[str, Any], dataset: Path
) -> None:
    """Apptainer is no package here: a stand-in takes its options and runs the command."""
    stand_in = place.folder / "bin"
    stand_in.mkdir()
    (stand_in / "apptainer").write_text(
        '#!/bin/bash\necho "apptainer $*"\n[ "$1" = exec ] || exit 64\n'
        'while [ "$1" != worker.sif ]; do shift; done\nshift\nexec "$@"\n'
    )
    (stand_in / "apptainer").chmod(0o755)
    textfiles, keys = place.folder / "textfiles", place.folder / "keys"
    textfiles.mkdir()
    keys.write_text(
        f"[default]\naws_access_key_id = {place.settings.pop('AWS_ACCESS_KEY_ID')}\n"
        f"aws_secret_access_key = {place.settings.pop('AWS_SECRET_ACCESS_KEY')}\n"
    )
    place.settings |= {
        "PATH": f"{stand_in}:{place.settings['PATH']}",
        "AWS_SHARED_CREDENTIALS_FILE": str(keys),
        "WORKER_METRICS_TEXTFILE": str(textfiles),
    }
    number = place.submit("apptainer.sbatch", ONE_TASK, place.upload(job, dataset), "worker.sif")
    shown = place.slurm.wait(number, "COMPLETED", "FAILED")
    log = place.log(number)
    assert shown["JobState"] == "COMPLETED", log
    calls = re.findall(r"^apptainer (.*)$", log, re.MULTILINE)
    assert [call.split()[-3:-1] for call in calls[1:]] == [["worker", "train"]]
    binds = f"--bind {textfiles}:{textfiles} --bind {keys}:{keys}:ro"
    start = f"exec --contain --no-home --nv {binds} worker.sif worker check s3://"
    assert calls[0].startswith(start), calls[0]
    (left,) = textfiles.glob("worker-job-*.prom")
    assert "worker_step{" in left.read_text()


def test_a_stop_before_the_ranks_are_there_is_not_lost(
    place: Place, long_job: dict[str, Any], dataset: Path, calm: dict[str, str]
) -> None:
    """While the preflight runs, and again right as the training step begins."""
    job = place.submit("multi-node.sbatch", TWO_NODES, place.upload(long_job, dataset))
    for number, line in enumerate(("credentials", "all checks passed")):
        wait_until(lambda n=number, text=line: place.log(job).count(text) > n, 90, place.slurm.logs)  # type: ignore[misc]
        place.slurm.run("scancel", "--batch", "--signal=USR1", job)
        wait_until(
            lambda n=number: place.slurm.show(job)["Restarts"] == str(n + 1),  # type: ignore[misc]
            60,
            lambda: place.log(job),
        )
    shown = place.slurm.wait(job, "COMPLETED", "FAILED")
    assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "2"), place.log(job)
    assert "retries:" not in shown.get("Comment", "")
    assert place.weights() == calm["weights"]


def test_scripts_are_clean() -> None:
    files = sorted(map(str, [*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch")]))
    assert len(files) == 7
    done = subprocess.run(
        ["shellcheck", "-x", *files], capture_output=True, text=True, cwd=ROOT, env=os.environ
    )
    assert done.returncode == 0, done.stdout
