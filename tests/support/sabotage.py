"""What tests do to a `worker` process before it starts; functions that can be pickled by name."""

import itertools
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any


def slow_steps(seconds: float) -> None:
    """Every training step takes so much longer."""
    from worker.learn.training_step import Engine

    real = Engine.launch

    def step(*arguments: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments)

    setattr(Engine, "launch", step)


def slow_units(seconds: float) -> None:
    """Every unit of a pack takes so much longer to read."""
    from worker.ingest import pack

    real = getattr(pack, "read_unit")

    def read(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments, **named)

    setattr(pack, "read_unit", read)


def slow_uploads(seconds: float) -> None:
    """Every checkpoint takes so much longer to upload."""
    from worker.checkpoint import saver_process as saver

    real = getattr(saver, "write_parts")

    def write_parts(*arguments: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments)

    setattr(saver, "write_parts", write_parts)


def keep_small_images() -> None:
    """Scratch keeps decoded images of any size; the file $DECODED grows by a byte per decoding."""
    from worker.data import decoded_cache as decoded
    from worker.data import loader

    setattr(decoded, "_SMALLEST", 0)
    real = getattr(loader, "decode")

    def decode(*arguments: Any) -> Any:
        with Path(os.environ["DECODED"]).open("ab", buffering=0) as file:
            file.write(b".")
        return real(*arguments)

    setattr(loader, "decode", decode)


def note_recomputing() -> None:
    """The file $RECOMPUTED is there once a block's activations are computed again."""
    from worker.model import activation_checkpointing as activations

    real = getattr(activations, "_contexts")

    def contexts(*arguments: Any) -> Any:
        Path(os.environ["RECOMPUTED"]).touch()
        return real(*arguments)

    setattr(activations, "_contexts", contexts)


def two_ranks_per_piece() -> None:
    """The ledger is written by every second rank."""
    from worker.record import sample_ledger as record

    setattr(record, "_RANKS_PER_PIECE", 2)


def stuck_in_a_step(number: int) -> None:
    """The last rank never gets through step `number`."""
    import torch.distributed as dist

    from worker.learn.training_step import Engine

    real = Engine.launch

    def step(engine: Engine, at: int, *arguments: Any) -> Any:
        if at == number and dist.get_rank() == dist.get_world_size() - 1:
            time.sleep(1000)
        return real(engine, at, *arguments)

    setattr(Engine, "launch", step)


def killed_while_others_are_in_native_code(number: int) -> None:
    """In step `number` the last rank is killed while the others wait as for a GPU."""
    import torch.distributed as dist

    from worker.learn.training_step import Engine

    real = Engine.launch

    def step(engine: Engine, at: int, *arguments: Any) -> Any:
        if at == number and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if at == number:
            time.sleep(1000)
        return real(engine, at, *arguments)

    setattr(Engine, "launch", step)


def killed_while_reading() -> None:
    """Rank 0 is killed while it looks for a checkpoint, and the others wait for it."""
    from worker.train import resume

    def list_commits(*arguments: Any) -> Any:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(resume, "list_commits", list_commits)


def crash_in_a_step(number: int) -> None:
    """The last rank dies of a segmentation fault in step `number`."""
    import torch.distributed as dist

    from worker.learn.training_step import Engine

    real = Engine.launch

    def step(engine: Engine, at: int, *arguments: Any) -> Any:
        if at == number and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(engine, at, *arguments)

    setattr(Engine, "launch", step)


def worse_and_worse() -> None:
    """The accuracy of every evaluation is lower than that of the one before; the loss stays."""
    from worker.train import validation

    real = validation._event
    count = 0

    def event(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        share = 1 / count
        return replace(real(*arguments), accuracy=share, value=share, loss=0.5)

    setattr(validation, "_event", event)


def without_onnx() -> None:
    """The packages that ONNX export needs are not there."""
    import importlib.util

    real = importlib.util.find_spec

    def find_spec(name: str, *more: Any) -> Any:
        return None if name.startswith("onnx") else real(name, *more)

    setattr(importlib.util, "find_spec", find_spec)


def another_experiment_first() -> None:
    """While the ranks meet, another experiment claims the same output."""
    from worker.checkpoint.claim import claim_attempt
    from worker.train import run_rank

    real = getattr(run_rank, "begin_attempt")

    def begin_attempt(job: Any, *arguments: Any, **more: Any) -> Any:
        claim_attempt(job.output, {**job.identity, "train.seed": "77"}, {}, lambda: None)
        return real(job, *arguments, **more)

    setattr(run_rank, "begin_attempt", begin_attempt)


def unreadable_validation() -> None:
    """The store of the validation set gives up on the last rank."""
    import torch.distributed as dist

    from worker.errors import InfrastructureError
    from worker.job.loaders import Loaders

    real = Loaders.batches

    def batches(supply: Loaders[Any], request: Any) -> Any:
        if request.dataset != "val":
            yield from real(supply, request)
            return
        yield from itertools.islice(real(supply, request), 1)
        if dist.get_rank() == dist.get_world_size() - 1:
            raise InfrastructureError("the store of the pictures is down")

    setattr(Loaders, "batches", batches)


def pause_in_export(at: int) -> None:
    """Stop the process, as SIGSTOP does, before request `at` of its export to the local store."""
    from worker.store.local import LocalStore
    from worker.train import finish

    real, count = getattr(finish, "_write"), -1

    def counted(method: str) -> None:
        original = getattr(LocalStore, method)

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            if count >= 0 and not str(arguments[1:2]).count("progress"):
                if count == at:
                    count += 1
                    os.kill(os.getpid(), signal.SIGSTOP)
                count += 1
            return original(*arguments, **named)

        setattr(LocalStore, method, call)

    def write(*arguments: Any) -> Any:
        nonlocal count
        count = 0
        return real(*arguments)

    for method in ("get", "put_stream", "put_if_absent", "replace", "list", "delete"):
        counted(method)
    setattr(finish, "_write", write)
