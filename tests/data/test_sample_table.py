"""The sample table says what the tars hold, whoever wrote it, and is never trusted blindly."""

from pathlib import Path

import pytest

from tests.support.tars import labeled, tar
from worker.data.index import parse_address, read_index
from worker.data.index_tars import index_tars
from worker.data.sample_table import SampleTable, read_table, table_name
from worker.data.tar_sample import hash_key
from worker.data.tar_source import find_tars
from worker.errors import DataError
from worker.layout import INDEX_NAME
from worker.store import open_store


def index_folder(folder: Path) -> None:
    index_tars(
        find_tars(str(folder)),
        None,
        "label",
        error_budget=0.0,
        threads=2,
        max_pixels=None,
        advance=lambda done: None,
    )


def table_at(uri: str) -> SampleTable:
    address = parse_address(uri)
    return read_table(address.store, read_index(address))


def test_a_brace_pattern_has_its_part_of_the_table(tmp_path: Path) -> None:
    for shard in range(4):
        (tmp_path / f"s-{shard}.tar").write_bytes(tar(labeled(3 + shard, first=10 * shard)))
    index_folder(tmp_path)
    whole = table_at(str(tmp_path))
    assert whole["key"].tolist() == [
        hash_key(f"{10 * shard + n:04d}") for shard in range(4) for n in range(3 + shard)
    ]
    assert whole["group"].tolist() == whole["key"].tolist()
    assert whole["label"][:3].tolist() == [0, 1, 2]
    part = table_at(f"{tmp_path}/s-{{3,1}}.tar")
    wanted = (*range(30, 36), *range(10, 14))
    assert part["key"].tolist() == [hash_key(f"{number:04d}") for number in wanted]


def test_a_group_member_makes_a_group(tmp_path: Path) -> None:
    members = []
    for number in range(4):
        patient = f"patient{number // 2}".encode()
        members += [*labeled(1, first=number), (f"{number:04d}.group", patient)]
    (tmp_path / "a.tar").write_bytes(tar(members))
    index_folder(tmp_path)
    groups = table_at(str(tmp_path))["group"].tolist()
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_a_table_that_is_not_the_one_indexed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(labeled(2)))
    index_folder(tmp_path)
    store = open_store(str(tmp_path))
    name = table_name(read_index(parse_address(store.uri)).table or "")
    data = store.get(name)
    for damaged in (data[:-1], data[:-1] + b"\x07", b"", b"PK"):
        store.put(name, damaged)
        with pytest.raises(DataError, match="is not the table that the index describes; index"):
            table_at(store.uri)
    store.delete(name)
    with pytest.raises(DataError, match="npy: no such file; index again"):
        table_at(store.uri)
    index = read_index(parse_address(store.uri)).model_copy(update={"table": None})
    store.put(INDEX_NAME, index.model_dump_json(exclude_none=True).encode())
    with pytest.raises(DataError, match="has no table of its samples; index again"):
        table_at(store.uri)
