"""The index of a data set, its sidecars and patterns."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from tests.support.processes import Run
from tests.support.stores import open_index, open_reader
from worker.data.index import (
    parse_address,
    read_index,
)
from worker.data.read_cache import Cache
from worker.data.reader import SampleReader
from worker.errors import ConfigurationError
from worker.store import open_store


@pytest.mark.parametrize("damage", ["count", "label", "negative", "offset", "dtype", "order"])
def test_a_sidecar_that_does_not_fit_is_not_believed(
    damage: str, run: Run, write: Callable[[Any], str], job: dict[str, Any], tmp_path: Path
) -> None:
    """Though its digest is the one that the index names."""
    shutil.copytree(job["data"]["train"], tmp_path / "set")
    path = tmp_path / "set/index.json"
    index = json.loads(path.read_text())
    shard = index["shards"][0]
    name = f"{shard['name'].removesuffix('.tar')}.{shard['sidecar_digest']}.samples.npy"
    rows = np.load(tmp_path / "set" / name)
    if damage == "count":
        shard["samples"] -= 1
    elif damage == "dtype":
        rows = rows["offset"]
    elif damage == "order":
        rows = rows[::-1]
    else:
        values = {"label": ("label", 7), "negative": ("label", -1), "offset": ("offset", 1 << 63)}
        column, value = values[damage]
        rows[column][-1] = value
    buffer = io.BytesIO()
    np.save(buffer, rows)
    shard["sidecar_digest"] = xxhash.xxh3_64_hexdigest(buffer.getvalue())
    name = f"{shard['name'].removesuffix('.tar')}.{shard['sidecar_digest']}.samples.npy"
    (tmp_path / "set" / name).write_bytes(buffer.getvalue())
    path.write_text(json.dumps(index))
    job["data"]["train"] = f"{tmp_path}/set"
    ended = run("train", write(job))
    assert ended.code == 65, ended.err
    assert "its shard's sidecar cannot be used" in ended.err
    assert "Traceback" not in ended.err


def test_a_pattern_names_some_of_the_shards(dataset: Path) -> None:
    whole = open_index(f"{dataset}/train")
    names = [shard.name.removeprefix("shard-").removesuffix(".tar") for shard in whole.shards]
    some = open_index(f"{dataset}/train/shard-{{{names[1]},{names[2]}}}.tar")
    assert some.shards == whole.shards[1:3]
    one = open_index(f"{dataset}/train/{whole.shards[0].name}")
    assert one.shards == whole.shards[:1]
    assert len({whole.digest, some.digest, one.digest}) == 3
    with pytest.raises(ConfigurationError, match="does not list shard-000099.tar"):
        open_index(f"{dataset}/train/shard-{{000098..000099}}.tar".replace("98", "99"))
    with pytest.raises(ConfigurationError, match="brace is not closed"):
        open_index(f"{dataset}/train/shard-{{000001.tar")


def test_parts_of_one_folder_may_share_a_cache(dataset: Path) -> None:
    address = parse_address(f"{dataset}/train")
    whole = read_index(address)
    cache = Cache(64 << 20)
    parts = [
        SampleReader(address.store, whole.model_copy(update={"shards": (shard,)}), cache=cache)
        for shard in whole.shards[:2]
    ]
    first = whole.shards[0].samples
    alone = open_reader(f"{dataset}/train")
    assert parts[0].read(0) == alone.read(0)
    assert parts[1].read(0) == alone.read(first)


def test_reading_a_named_part_reads_that_part(dataset: Path) -> None:
    whole = f"{dataset}/train"
    part = f"{whole}/{open_index(whole).shards[1].name}"
    first = open_index(whole).shards[0].samples
    assert open_reader(part).read(0) == open_reader(whole).read(first)
    address = parse_address(part)
    assert read_index(address).samples == open_index(whole).shards[1].samples
    assert address.store.uri == open_store(whole).uri
