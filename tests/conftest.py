"""An S3 server, small data sets, and `worker` commands in processes of their own."""

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
import torch.distributed as dist
from ruamel.yaml import YAML

import tests.support.examples  # noqa: F401 -- the profile of `make quick`
from bench.servers import REAL
from tests.support.docker import Docker, start_docker
from tests.support.packs import pack_folder
from tests.support.paths import SHARED
from tests.support.pictures import write_pictures
from tests.support.processes import Run, Running, Sabotage, Start
from tests.support.s3_server import start_s3_server
from tests.support.stores import contents
from worker.store import Store, open_store

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `worker train` has it
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # as several processes share the cores
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # its own crashes beside torch's


_LONGER_THAN_UNIT = {"aws", "start", "s3_endpoint", "engine"}
"""Fixtures that need a server, or processes of their own."""
_LONGER_FOLDERS = {"fuzz", "gpu", "jobs", "kube", "places", "train"}
_LONGER_FILES = {
    *("test_activation_checkpointing", "test_catalog", "test_epoch_plan", "test_exporters"),
    *("test_html_page", "test_optimizer", "test_pretrained_weights", "test_pushgateway"),
    *("test_scrape_port", "test_skeleton", "test_spawn", "test_tensor_files", "test_evaluation"),
    *("test_micro_batch_trial", "test_training_step", "test_worst_images", "test_micro_batches"),
}
"""Tests that compute for long, or start processes without a fixture."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need neither a server nor a process, for `make quick`."""
    for item in items:
        source = inspect.getsource(item.function) if isinstance(item, pytest.Function) else ""
        marks = {mark.name for mark in item.iter_markers()}
        if not (
            _LONGER_THAN_UNIT & set(getattr(item, "fixturenames", ()))
            or item.path.stem in _LONGER_FILES
            or item.path.parent.name in _LONGER_FOLDERS
            or marks & {"e2e", "heavy", "kube", "gpu"}
            or "in_fresh_process" in source
            or "subprocess" in source
        ):
            item.add_marker("unit")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was no stand-in."""
    for name, version in sorted(REAL.items()):
        terminalreporter.write_line(f"ran for real: {name}, {version}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, what `../shared` is there for must not be left out."""
    if hasattr(session.config, "workeroutput"):  # one of several processes
        session.config.workeroutput["real"] = REAL
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if "WORKER_CI" in os.environ and SHARED.exists() and reporter and reporter.stats.get("skipped"):
        reporter.write_line("skipped, though CI skips nothing")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_testnodedown(node: Any) -> None:
    """Collect what each of several processes has noted."""
    REAL.update(getattr(node, "workeroutput", {}).get("real", {}))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server on loopback that any test process may use."""
    with start_s3_server() as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings of the machine, and with a short patience."""
    for name in [
        name
        for name in os.environ
        if name.startswith(("AWS_", "WORKER_", "SLURM_", "JOB_", "PET_", "RANK", "LOCAL_RANK"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "2")


@pytest.fixture
def aws(environment: None, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that leads to the S3 server, with the time that a slow machine needs."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "20")


@pytest.fixture
def bucket(aws: None, request: pytest.FixtureRequest) -> str:
    """The address of a new, empty bucket."""
    name = f"b{abs(hash(request.node.nodeid)) % 10**12}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with train/ (52 pictures) and val/ (14) of the classes blue and red."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "train", 26)
    write_pictures(folder / "val", 7, seed=1)
    return folder


@pytest.fixture(scope="session")
def dataset(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures as shards of about ten, in train/ and val/."""
    folder = tmp_path_factory.mktemp("dataset")
    pack_folder(pictures, str(folder))
    return folder


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A Docker engine with the shipped Dockerfile's image, and with MinIO's."""
    with start_docker(tmp_path_factory.mktemp("docker")) as engine:
        engine.build_worker()
        engine.build_stand_in(tmp_path_factory.mktemp("images") / "minio", "minio", "minio")
        yield engine


@pytest.fixture
def docker(engine: Docker) -> Iterator[Docker]:
    """That engine without anything that runs on it."""
    yield engine
    engine.clean()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `worker ARGUMENTS` in a process forked from one that has torch imported."""
    started: list[Running] = []

    def begin(*arguments: str, sabotage: Sabotage = None) -> Running:
        folder = tmp_path / f"process-{len(started)}"
        folder.mkdir()
        started.append(Running(arguments, folder, sabotage))
        return started[-1]

    yield begin
    for running in started:
        running._process.kill()


@pytest.fixture
def run(start: Start) -> Run:
    """Runs `worker ARGUMENTS` to its end."""
    return lambda *arguments, **more: start(*arguments, **more).wait()


@pytest.fixture(scope="session")
def alone() -> Iterator[None]:
    """A process group of this process alone, for engines that run in it."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def job(dataset: Path, tmp_path: Path) -> dict[str, Any]:
    """A small job on local disk, as the data of its manifest."""
    return {
        "version": 1,
        "job": "blue-red",
        "output": f"{tmp_path}/run/",
        "data": {
            "train": f"{dataset}/train/",
            "val": f"{dataset}/val/",
            "image_size": 32,
            "augment": {"crop_scale": [0.5, 1.0]},
        },
        "model": {"backbone": "shufflenet_v2_x0_5"},
        "optimizer": {
            "lr": 1e-3,
            "weight_decay": 1e-5,
            "groups": [{"match": "head"}, {"match": "*", "scale": 0.1}],
        },
        "train": {"epochs": 2, "batch_size": 12},
        "record": {"samples": True},
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Writes a manifest to disk and returns its path."""

    def save(manifest: dict[str, Any]) -> str:
        path = tmp_path / f"{manifest.get('job', 'job')}.yaml"
        YAML(typ="safe", pure=True).dump(manifest, path)
        return str(path)

    return save


@pytest.fixture
def damaged(dataset: Path, tmp_path: Path) -> Store:
    """A copy of the training shards to do harm to."""
    store = open_store(str(tmp_path / "damaged"))
    for key, data in contents(open_store(f"{dataset}/train")).items():
        store.put(key, data)
    return store
