"""Processes that decode give what the rank itself would."""

import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.processes import Run, Start, in_fresh_process
from tests.support.stores import open_index, open_reader
from worker.data.augment import Augmentation
from worker.data.batch_requests import Request, Work
from worker.data.decode_image import ImageSpec
from worker.data.decode_processes import SLOTS, DecodeProcesses
from worker.data.epoch_plan import EpochPlan, Ids
from worker.data.in_process_loader import InProcess
from worker.data.loader import Batch, Loader, Prepare
from worker.data.process_part import ProcessPart
from worker.data.reader import BadSample, SampleReader
from worker.data.shared_slots import Slots
from worker.errors import InfrastructureError
from worker.manifest import Augment
from worker.model.backbone import preprocessing_of
from worker.store import traffic_counts as traffic

PREPROCESSING = preprocessing_of("resnet18").at(24)


BATCH = 12


class Reading:
    """What requests mean for the pictures of the fixture `dataset`."""

    def __init__(self, uri: str, lead: int = 0) -> None:
        self.uri = uri
        self._lead = lead
        self._counts = open_index(uri).counts

    def resolve(self, request: Request) -> Work:
        if request.samples is not None:
            ids = np.asarray(request.samples, dtype=np.int64)
            parts = (ids[at : at + 5] for at in range(0, len(ids), 5))
            return Work(batches=parts, prepare_for=self._evaluated, in_order=True)
        prepare_for = Augmentation(PREPROCESSING, Augment(trivialaugment=True), 3).prepare_for(7)
        return Work(batches=self._batches(request), prepare_for=prepare_for, lead=self._lead)

    def _batches(self, request: Request) -> Iterable[Ids]:
        plan = EpochPlan(self._counts, BATCH, 0, epoch=request.epoch)
        for step in range(request.start, plan.steps):
            ids = plan.batch(step)
            yield np.concatenate([ids[-1:], ids]) if self._lead else ids

    def _evaluated(self, ids: Ids) -> Prepare:
        return lambda place, image, out: PREPROCESSING.evaluated(image, out)


def open_part(
    reading: Reading,
    slots: Slots,
    count: int,
    sabotage: Callable[[SampleReader], None] | None,
    index: int,
) -> ProcessPart:
    reader = open_reader(reading.uri)
    if sabotage:
        sabotage(reader)
    loader = Loader(reader, 2, ImageSpec(10**6))
    return ProcessPart(
        index=index,
        count=count,
        readers={"train": reader},
        loaders={"train": loader},
        resolve=reading.resolve,
        slots=slots,
        size=24,
    )


@contextmanager
def processes(
    reading: Reading, count: int, sabotage: Callable[[SampleReader], None] | None = None
) -> Iterator[DecodeProcesses]:
    slots = Slots(SLOTS, BATCH + 1, 24)
    opened = functools.partial(open_part, reading, slots, count, sabotage)
    parts = [functools.partial(opened, index) for index in range(count)]
    running = DecodeProcesses(parts, reading.resolve, slots)
    try:
        yield running
    finally:
        running.close()


def copied(batches: Generator[Batch]) -> list[Batch]:
    return [
        Batch(
            images=b.images.clone(),
            labels=b.labels.clone(),
            ids=b.ids,
            valid=b.valid.clone(),
            bad=b.bad,
        )
        for b in batches
    ]


def require_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.valid, other.valid)
        assert {bad.id for bad in one.bad} == {bad.id for bad in other.bad}


def spoil(reader: SampleReader) -> None:
    read = reader.read

    def harmed(number: int) -> object:
        if number % 7 == 2:
            raise BadSample("altered", "it was flipped")
        return read(number)

    reader.read = harmed  # type: ignore[method-assign, assignment]


def compare(uri: str) -> None:
    """Any number of processes gives what the rank by itself does, for any request, in any order."""
    requests = [
        Request(dataset="train", epoch=0),
        Request(dataset="train", samples=range(3, 40)),
        Request(dataset="train", epoch=1, start=2),
        Request(dataset="train", samples=[]),
        Request(dataset="train", samples=[9]),
    ]
    for lead, sabotage in ((0, None), (1, None), (1, spoil)):
        reading = Reading(uri, lead)
        reader = open_reader(uri)
        if sabotage:
            sabotage(reader)
        alone = InProcess({"train": Loader(reader, 0, ImageSpec(10**6))}, reading.resolve, 24)
        for count in (1, 2, 5):
            with processes(reading, count, sabotage) as running:
                for request in requests:
                    require_same(copied(running.batches(request)), list(alone.batches(request)))


def test_processes_give_what_the_rank_gives(dataset: Path) -> None:
    in_fresh_process(compare, f"{dataset}/train")


def hold(uri: str) -> None:
    """A batch stays as it is while the next is in use, and goes when the second after it comes."""
    with processes(Reading(uri), 2) as running:
        batches = running.batches(Request(dataset="train"))
        first, kept = next(batches), None
        kept = first.images.clone()
        next(batches)
        time.sleep(0.5)  # the processes get as far as they may
        assert torch.equal(first.images, kept)


def test_a_batch_in_use_is_not_overwritten(dataset: Path) -> None:
    in_fresh_process(hold, f"{dataset}/train")


def break_off(uri: str) -> None:
    with processes(Reading(uri), 3) as running:
        for taken in (0, 1, 3):
            batches = running.batches(Request(dataset="train"))
            list(itertools.islice(batches, taken))
            batches.close()
        whole = list(running.batches(Request(dataset="train", samples=range(12))))
        assert [batch.ids.tolist() for batch in whole] == [
            [0, 1, 2, 3, 4],
            [5, 6, 7, 8, 9],
            [10, 11],
        ]


def test_a_request_may_be_broken_off(dataset: Path) -> None:
    in_fresh_process(break_off, f"{dataset}/train")


def dawdle(reader: SampleReader) -> None:
    """A sample of the fifth batch of five, the last that there is room for, takes long to read."""
    read, count = reader.read, itertools.count()

    def slow(number: int) -> object:
        sample = read(number)
        time.sleep(1.0 if next(count) == 21 else 0.0)
        return sample

    reader.read = slow  # type: ignore[method-assign, assignment]


def break_off_and_compare(uri: str) -> None:
    reading = Reading(uri)
    alone = InProcess({"train": Loader(open_reader(uri), 0, ImageSpec(10**6))}, reading.resolve, 24)
    with processes(reading, 1, dawdle) as running:
        batches = running.batches(Request(dataset="train", samples=range(50)))
        next(batches)
        time.sleep(0.2)
        batches.close()
        found = []
        for batch in running.batches(Request(dataset="train")):
            time.sleep(0.3)
            found.append(
                Batch(
                    images=batch.images.clone(),
                    labels=batch.labels.clone(),
                    ids=batch.ids,
                    valid=batch.valid,
                )
            )
        require_same(found, list(alone.batches(Request(dataset="train"))))


def test_nothing_of_a_request_that_was_broken_off_is_in_the_next(dataset: Path) -> None:
    in_fresh_process(break_off_and_compare, f"{dataset}/train")


def lose_store(reader: SampleReader) -> None:
    read = reader.read

    def failing(number: int) -> object:
        if number == 11:
            raise InfrastructureError("the store is gone")
        return read(number)

    reader.read = failing  # type: ignore[method-assign, assignment]


def meet_outage(uri: str) -> None:
    with processes(Reading(uri), 2, lose_store) as running:
        batches = running.batches(Request(dataset="train", samples=range(20)))
        assert len(list(itertools.islice(batches, 2))) == 2
        with pytest.raises(InfrastructureError, match="the store is gone"):
            next(batches)
        again = running.batches(Request(dataset="train", samples=range(5)))
        assert len(list(again)) == 1


def test_an_outage_surfaces_at_its_batch(dataset: Path) -> None:
    in_fresh_process(meet_outage, f"{dataset}/train")


def have_bug(reader: SampleReader) -> None:
    reader.read = lambda number: 1 / 0  # type: ignore[method-assign, assignment, return-value]


def meet_bug(uri: str) -> None:
    found = pytest.raises(RuntimeError, match=r"a process that decodes[\s\S]*ZeroDivisionError")
    with processes(Reading(uri), 2, have_bug) as running, found:
        next(running.batches(Request(dataset="train")))


def test_a_bug_comes_with_its_traceback(dataset: Path) -> None:
    in_fresh_process(meet_bug, f"{dataset}/train")


def lose_process(uri: str) -> None:
    with processes(Reading(uri), 2) as running:
        batches = running.batches(Request(dataset="train", samples=range(50)))
        next(batches)
        os.kill(running._children[1]._process.pid or 0, signal.SIGKILL)
        with pytest.raises(
            InfrastructureError, match="decodes was killed by SIGKILL, which the kernel"
        ):
            list(batches)


def test_a_killed_process_is_noticed(dataset: Path) -> None:
    in_fresh_process(lose_process, f"{dataset}/train")


class Counted:
    def __init__(self) -> None:
        self.requests = 0

    def request(self, operation: str, seconds: float, size: int) -> None:
        self.requests += size > 0

    def retry(self, operation: str) -> None: ...

    def failure(self, operation: str) -> None: ...


def count_requests(uri: str) -> None:
    counted = Counted()
    traffic.listen(counted)
    with processes(Reading(uri), 2) as running:
        list(running.batches(Request(dataset="train")))
    assert counted.requests >= len(open_index(uri).shards)


def test_what_processes_ask_of_the_store_is_counted(dataset: Path, bucket: str) -> None:
    from tests.support.stores import contents
    from worker.store import open_store

    store = open_store(f"{bucket}/train/")
    for key, data in contents(open_store(f"{dataset}/train")).items():
        store.put(key, data)
    in_fresh_process(count_requests, f"{bucket}/train/")


def children_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_rank(
    number: signal.Signals,
    job: dict[str, object],
    write: Callable[[dict[str, object]], str],
    start: Start,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKER_LOADER_THREADS", "4")
    job["train"] = {"epochs": 200, "batch_size": 12}
    running = start("train", write(job))
    running.wait_for("step 1")
    found = children_of(running.pid)
    assert len(found) == 3  # two that decode with two threads each, one that saves
    running.send(number)
    running.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in found):
        assert time.monotonic() < deadline
        time.sleep(0.05)
