"""The process that writes checkpoints saves the state as it was at the copy."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.learners import CPU, learner_of, manifest_of
from tests.support.processes import in_fresh_process
from worker.checkpoint.commit import CommitName, publish_commit, read_commit
from worker.checkpoint.saver_process import Saver
from worker.checkpoint.snapshot import restore_snapshot, room_for_training, take_snapshot
from worker.errors import ConfigurationError, InfrastructureError
from worker.model.backbone import build_backbone
from worker.model.learner import Learner
from worker.store import open_store
from worker.store import traffic_counts as traffic

NAME = CommitName(3, 1)


class Counts:
    """Requests by operation."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    def request(self, operation: str, seconds: float, size: int) -> None:
        self.requests.append(operation)

    def retry(self, operation: str) -> None: ...

    def failure(self, operation: str) -> None: ...


@contextlib.contextmanager
def saver_and_learner(uri: str) -> Iterator[tuple[Saver, Learner]]:
    torch.set_num_threads(1)  # a fork can use OpenMP only if its parent has not
    manifest = manifest_of([{"match": "*"}], {"ema": 0.9}, name="adamw")
    backbone = build_backbone("mobilenet_v3_small", 2, 0, 32)
    learner = learner_of(backbone, manifest)
    size = room_for_training(learner.model, learner.groups, manifest)
    with contextlib.closing(Saver(open_store(uri), size)) as saver:
        yield saver, learner


def saved_as_it_was(uri: str) -> None:
    """Save, change the weights meanwhile, and read back what they were."""
    with saver_and_learner(uri) as (saver, learner):
        saver.host.prepare(CPU)
        counts = Counts()
        traffic.listen(counts)
        for parameter in learner.model.parameters():  # what the optimizer keeps, without a step
            state = learner.optimizer.state[parameter]
            state["step"] = torch.tensor(1.0)
            state["exp_avg"] = torch.rand_like(parameter)
            state["exp_avg_sq"] = torch.rand_like(parameter)
        snapshot = take_snapshot(learner, saver.host, {"step": 3})
        expected = {n: t.clone() for n, t in learner.model.state_dict().items()}
        with torch.no_grad():
            for parameter in learner.model.parameters():
                parameter.zero_()
        store = open_store(uri)
        publish_commit(store, NAME, saver.write(NAME, snapshot))
        assert counts.requests.count("put") == 4  # its requests are counted here
        parts = read_commit(store, NAME)
        assert parts
        restore_snapshot(parts, learner)
        for name, tensor in learner.model.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_what_is_saved_is_the_state_at_the_copy(bucket: str) -> None:
    in_fresh_process(saved_as_it_was, f"{bucket}/run/")


def refused_by_the_store(uri: str) -> None:
    with saver_and_learner(uri) as (saver, learner):
        snapshot = take_snapshot(learner, saver.host, {"step": 3})
        with pytest.raises(ConfigurationError, match="bucket"):
            saver.write(NAME, snapshot)
        with pytest.raises(ConfigurationError, match="bucket"):  # and it still answers
            saver.write(NAME, snapshot)


def test_an_error_of_the_store_is_raised_where_it_is_waited_for(aws: None) -> None:
    in_fresh_process(refused_by_the_store, "s3://no-such-bucket/run/")


def killed_process(uri: str) -> None:
    with saver_and_learner(uri) as (saver, learner):
        snapshot = take_snapshot(learner, saver.host, {"step": 3})
        pid = saver._child._process.pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            InfrastructureError, match="the process that saves checkpoints was killed by SIGKILL"
        ):
            saver.write(NAME, snapshot)


def test_a_killed_process_is_infrastructure(tmp_path: Path) -> None:
    in_fresh_process(killed_process, str(tmp_path))
