"""What every kind of store promises."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from moto.s3.models import S3Backend

from tests.support.stores import keys
from worker.errors import ConfigurationError, InfrastructureError
from worker.store import ObjectMissing, Store, open_store, read_uri
from worker.store.local import LocalStore
from worker.store.s3 import S3Store


def test_objects_are_written_whole_and_read_in_parts(store: Store) -> None:
    store.put("a/b.bin", b"0123456789")
    assert store.get("a/b.bin") == b"0123456789"
    assert store.get("a/b.bin", 3) == b"3456789"
    assert store.get("a/b.bin", 3, 5) == b"34"
    assert store.get("a/b.bin", 3, 3) == b""
    assert store.get("a/b.bin", 8, 20) == b"89"
    assert store.get("a/b.bin", 10, 20) == b""
    store.put("a/b.bin", b"new")
    assert store.get("a/b.bin") == b"new"


def test_listing_is_in_key_order_and_by_prefix(store: Store) -> None:
    for name in ("b/2", "a/1", "b/10", "bc"):
        store.put(name, b"x" * len(name))
    assert keys(store) == ["a/1", "b/10", "b/2", "bc"]
    assert [(info.key, info.size) for info in store.list("b/")] == [("b/10", 4), ("b/2", 3)]
    assert [info.key for info in store.list("b/1")] == ["b/10"]
    assert list(store.list("none/")) == []


def test_missing_objects_are_named(store: Store) -> None:
    with pytest.raises(ObjectMissing, match="prefix/nothing.json: no such"):
        store.get("nothing.json")
    store.delete("nothing.json")


def test_deleted_objects_are_gone(store: Store) -> None:
    store.put("x", b"1")
    store.delete("x")
    assert keys(store) == []


def test_one_of_many_creates(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put_if_absent("lock", b"%d" % n), range(24)))
    assert won.count(True) == 1
    assert store.get("lock") == b"%d" % won.index(True)


def test_one_of_many_creates_on_the_test_server_when_each_write_takes_time(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests of claims run on moto; it must be as atomic as a real store on a busy machine, too."""
    write = S3Backend.put_object

    def slow(*args: Any, **settings: Any) -> Any:
        time.sleep(0.05)
        return write(*args, **settings)

    monkeypatch.setattr(S3Backend, "put_object", slow)
    store = open_store(bucket)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put_if_absent("lock", b"%d" % n), range(8)))
    assert won.count(True) == 1


def test_creating_again_with_the_same_bytes_counts_as_created(store: Store) -> None:
    """A retry after a lost answer meets what its own first try wrote."""
    assert store.put_if_absent("lock", b"mine")
    assert store.put_if_absent("lock", b"mine")
    assert not store.put_if_absent("lock", b"yours")


def test_large_objects_are_written_in_parts(store: Store) -> None:
    """40 MiB, in pieces that fit no part."""
    piece = bytes(range(256)) * 4001
    count = 41
    pieces = (piece[number:] + piece[:number] for number in range(count))
    store.put_stream("large.bin", count * len(piece), pieces)
    data = store.get("large.bin")
    assert len(data) == count * len(piece)
    for number in range(count):
        assert data[number * len(piece) :][: len(piece)] == piece[number:] + piece[:number]
    (info,) = store.list()
    assert info.size == len(data)
    assert abs(info.modified - time.time()) < 300


def test_an_upload_that_breaks_off_leaves_what_was_there(store: Store) -> None:
    store.put("x", b"before")

    def pieces() -> Iterator[bytes]:
        yield bytes(20 << 20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put_stream("x", 40 << 20, pieces())
    assert store.get("x") == b"before"
    assert keys(store) == ["x"]
    assert store.abort_uploads("x") == 0


def test_a_check_comes_before_anything_is_created(store: Store) -> None:
    def refuse() -> None:
        raise InfrastructureError("no")

    with pytest.raises(InfrastructureError, match="no"):
        store.put_if_absent("lock", b"mine", refuse)
    assert keys(store) == []


def test_a_long_listing_is_read_in_pages(bucket: str) -> None:
    store = open_store(bucket)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.put(f"{n:05d}", b""), range(1005)))
    assert len(keys(store)) == 1005


def test_addresses() -> None:
    assert isinstance(open_store("s3://bucket/a/b"), S3Store)
    assert open_store("s3://bucket/a/b").uri == "s3://bucket/a/b/"
    assert open_store("s3://bucket").uri == "s3://bucket/"
    assert open_store("S3://bucket/a").uri == "s3://bucket/a/"
    assert open_store("FILE:///tmp/x").uri == "file:///tmp/x/"
    assert isinstance(open_store("file:///tmp/x%20y"), LocalStore)
    assert open_store("file:///tmp/x%20y").uri == "file:///tmp/x%20y/"
    assert open_store("file:///a/b#c?d").uri == "file:///a/b%23c%3Fd/"
    for wrong in ("gs://bucket/a", "file://tmp/x", "s3://", "s3://key:secret@bucket/a"):
        with pytest.raises(ConfigurationError) as caught:
            open_store(wrong)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="names a folder"):
        read_uri("s3://bucket/a/")
    for root in ("file:///no-such-file", "/no-such-file"):
        with pytest.raises(ObjectMissing, match="file:///no-such-file: no such"):
            read_uri(root)


@pytest.mark.parametrize("uri", ["a\0b", "s3://b/\x07", "s3://bucket/caf\udce9", "file:///\n"])
def test_addresses_hold_no_control_characters(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="contains characters that an address must not"):
        open_store(uri)
    with pytest.raises(ConfigurationError):
        read_uri(f"{uri}/x")


@pytest.mark.parametrize("uri", ["x" * 256, "~" + "x" * 255, f"file:///tmp/{'x' * 256}"])
def test_a_name_that_no_file_can_have_is_refused(uri: str) -> None:
    for use in (open_store, read_uri):
        with pytest.raises(ConfigurationError, match="has at most 255 bytes; shorten it"):
            use(uri)


def test_a_pattern_of_shards_may_be_longer() -> None:
    assert open_store(f"sets/{{{','.join('x' * 9 for _ in range(99))}}}.tar")


def test_an_object_is_replaced_only_as_it_was_seen(store: Store) -> None:
    assert store.replace("final/x", 1, [b"1"], "")
    assert not store.replace("final/x", 1, [b"2"], "")
    (seen,) = store.list("final/x")
    assert store.replace("final/x", 1, [b"3"], seen.version)
    assert not store.replace("final/x", 1, [b"4"], seen.version)
    assert not store.replace("final/gone", 1, [b"5"], seen.version)
    assert store.get("final/x") == b"3"


@pytest.mark.parametrize(
    "store",
    # moto answers 500 where an upload is gone
    [
        "local",
        pytest.param("minio", marks=pytest.mark.e2e),
        pytest.param("rgw", marks=pytest.mark.e2e),
    ],
    indirect=True,
)
def test_a_replacement_whose_upload_was_removed_says_so(store: Store) -> None:
    """As by an attempt that wakes and cleans up: nothing of the old kind may pass for it."""
    old = b"a" * (40 << 20)
    store.put_stream("final/model.safetensors", len(old), [old])
    (info,) = store.list("final/model.safetensors")

    def pieces() -> Iterator[bytes]:
        yield b"b" * (20 << 20)
        store.abort_uploads("final/model.safetensors")
        yield b"b" * (20 << 20)

    assert not store.replace("final/model.safetensors", 40 << 20, pieces(), info.version)
    assert store.get("final/model.safetensors") == old
