"""Batches in the order asked for, from any number of threads, with holes where samples are bad."""

import itertools
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.stores import open_index, open_reader
from worker.data.augment import Augmentation
from worker.data.decode_image import ImageSpec
from worker.data.epoch_plan import EpochPlan, Ids
from worker.data.loader import Batch, Loader, Prepare
from worker.data.reader import BadSample, SampleReader
from worker.errors import InfrastructureError
from worker.manifest import Augment
from worker.model.backbone import preprocessing_of

PREPROCESSING = preprocessing_of("resnet18").at(24)
IDS = [np.array(part, dtype=np.int64) for part in ([5, 2, 40], [], [7], [51, 0], [1], [2], [3])]


def evaluation(ids: Ids) -> Prepare:
    return lambda place, image, out: PREPROCESSING.evaluated(image, out)


def load(reader: SampleReader, threads: int) -> list[Batch]:
    loader = Loader(reader, threads, ImageSpec(10**6))
    batches = list(loader.batches(IDS, evaluation, size=24))
    loader.close()
    return batches


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_come_in_the_order_asked_for(threads: int, dataset: Path) -> None:
    reader = open_reader(f"{dataset}/train")
    got = load(reader, threads)
    assert [batch.ids.tolist() for batch in got] == [part.tolist() for part in IDS]
    assert got[0].images.shape == (3, 3, 24, 24)
    assert got[0].images.is_contiguous(memory_format=torch.channels_last)
    assert got[1].images.shape == (0, 3, 24, 24)
    assert got[3].labels.tolist() == [reader.read(51).label, reader.read(0).label]
    assert all(batch.valid.all() and not batch.bad for batch in got)


def test_the_number_of_threads_changes_no_pixel(dataset: Path) -> None:
    reader = open_reader(f"{dataset}/train")
    plan = EpochPlan(open_index(f"{dataset}/train").counts, 12, 0, epoch=1)
    prepare = Augmentation(PREPROCESSING, Augment(trivialaugment=True), 3).prepare_for(1)

    def images(threads: int) -> Tensor:
        loader = Loader(reader, threads, ImageSpec(10**6))
        ids = (plan.batch(step) for step in range(plan.steps))
        found = torch.cat([batch.images for batch in loader.batches(ids, prepare, size=24)])
        loader.close()
        return found

    first = images(0)
    assert torch.equal(first, images(1))
    assert torch.equal(first, images(3))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_sample_leaves_a_named_hole(threads: int, dataset: Path) -> None:
    reader = open_reader(f"{dataset}/train")
    read = reader.read

    def harmed(number: int) -> object:
        if number == 2:
            raise BadSample("altered", "it was flipped")
        return read(number)

    reader.read = harmed  # type: ignore[method-assign, assignment]
    got = load(reader, threads)
    assert got[0].valid.tolist() == [True, False, True]
    assert got[0].images[1].sum() == 0
    assert got[0].images[0].sum() > 0
    (bad,) = got[0].bad
    assert (bad.id, bad.reason) == (2, "altered")
    assert re.search(r"train/shard-000000-\w+\.tar: sample 2, byte", bad.text)
    assert bad.text.endswith("it was flipped")
    assert [batch.valid.all().item() for batch in got[1:]] == [True] * 4 + [False, True]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_outage_surfaces_at_its_batch(threads: int, dataset: Path) -> None:
    reader = open_reader(f"{dataset}/train")
    read = reader.read

    def failing(number: int) -> object:
        if number == 51:
            raise InfrastructureError("gone")
        return read(number)

    reader.read = failing  # type: ignore[method-assign, assignment]
    loader = Loader(reader, threads, ImageSpec(10**6))
    batches = loader.batches(IDS, evaluation, size=24)
    assert len(list(itertools.islice(batches, 3))) == 3
    with pytest.raises(InfrastructureError):
        next(batches)
    loader.close()


def test_a_closed_loader_leaves_no_thread(dataset: Path) -> None:
    before = set(threading.enumerate())
    reader = open_reader(f"{dataset}/train")
    loader = Loader(reader, 3, ImageSpec(10**6))
    batches = loader.batches(IDS, evaluation, size=24)
    next(batches)
    batches.close()
    loader.close()
    reader._cache.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_reading_ahead_is_bounded_and_begins_slowly(dataset: Path) -> None:
    reader = open_reader(f"{dataset}/train")
    asked: list[int] = []
    prefetch = reader.prefetch

    def counted(sample_ids: Ids) -> None:
        asked.append(len(sample_ids))
        prefetch(sample_ids)

    reader.prefetch = counted  # type: ignore[method-assign]
    loader = Loader(reader, 1, ImageSpec(10**6))
    batches = loader.batches((np.array([n % 52]) for n in range(5000)), evaluation, size=24)
    next(batches)
    assert len(asked) < 10
    for _ in range(2000):
        next(batches)
    assert 2001 < len(asked) < 2001 + 1024 + 10
    batches.close()
    loader.close()
