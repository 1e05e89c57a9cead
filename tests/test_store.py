"""One contract for both backends, and what S3 faults turn into."""

import contextlib
import multiprocessing
import os
import socket
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from bench.servers import Server, start_minio
from tests.support.ceph import start_rgw
from tests.support.proxy import Proxy, Request, proxy
from tests.support.stores import keys
from worker.errors import ConfigurationError, InfrastructureError
from worker.store import ObjectMissing, Store, open_store, read_uri
from worker.store.client import renew_client, s3_client
from worker.store.local import LocalStore
from worker.store.s3 import S3Store


@pytest.fixture(
    params=[
        "moto",
        "local",
        pytest.param("minio", marks=pytest.mark.e2e),
        pytest.param("rgw", marks=pytest.mark.e2e),
    ]
)
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """Each kind of store; RGW over https with a CA of its own."""
    if request.param == "local":
        yield open_store(f"{tmp_path}/prefix")
        return
    if request.param != "moto":
        server = request.getfixturevalue(request.param)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        # The default session keeps the credentials that it was made with.
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        renew_client()
    yield open_store(f"{request.getfixturevalue('bucket')}/some/prefix")
    renew_client()


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="session")
def rgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_rgw(tmp_path_factory.mktemp("rgw")) as server:
        yield server


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


def test_what_dead_uploads_have_left_is_removed(store: Store, tmp_path: Path) -> None:
    if isinstance(store, S3Store):
        for name in ("x", "xy"):
            where = {"Bucket": store.bucket, "Key": f"{store.prefix}{name}"}
            boto3.client("s3").create_multipart_upload(**where)
    else:
        store.put("xy", b"")
        for name in ("x", "xy"):
            (tmp_path / "prefix" / f".tmp-{name}-1").write_bytes(b"half")
    assert store.abort_uploads("x") == 1
    assert store.abort_uploads("x") == 0
    assert store.abort_uploads("xy") == 1


def test_a_check_comes_before_anything_is_created(store: Store) -> None:
    def refuse() -> None:
        raise InfrastructureError("no")

    with pytest.raises(InfrastructureError, match="no"):
        store.put_if_absent("lock", b"mine", refuse)
    assert keys(store) == []


def test_an_upload_holds_a_few_parts_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1 GiB, at most the four parts that are under way and the next one, twice each."""

    class Client:
        def create_multipart_upload(self, **_: Any) -> Any:
            return {"UploadId": "1"}

        def upload_part(self, **part: Any) -> Any:
            return {"ETag": str(len(part["Body"]))}

        def complete_multipart_upload(self, **_: Any) -> Any:
            return {"ETag": "1"}

    monkeypatch.setattr(S3Store, "_s3", Client())
    piece = bytes(1 << 20)
    tracemalloc.start()
    S3Store("bucket", "").put_stream("x", 1 << 30, (piece for _ in range(1024)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 160 << 20


def test_a_long_listing_is_read_in_pages(bucket: str) -> None:
    store = open_store(bucket)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.put(f"{n:05d}", b""), range(1005)))
    assert len(keys(store)) == 1005


def test_addresses() -> None:
    assert isinstance(open_store("s3://bucket/a/b"), S3Store)
    assert open_store("s3://bucket/a/b").uri == "s3://bucket/a/b/"
    assert open_store("s3://bucket").uri == "s3://bucket/"
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


def test_local_names_stay_below_the_root(tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", "/etc/passwd"):
        with pytest.raises(ConfigurationError, match="may not leave"):
            open_store(str(tmp_path)).get(name)


def test_an_unreachable_endpoint_is_infrastructure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:hunter2@127.0.0.1:{port}")
    renew_client()
    try:
        with pytest.raises(InfrastructureError, match=f" http://127.0.0.1:{port} cannot be rea"):
            open_store("s3://bucket/x").get("y")
        assert "trying again" in caplog.text
        assert "hunter2" not in caplog.text
    finally:
        renew_client()


def test_a_missing_bucket_is_configuration(aws: None) -> None:
    with pytest.raises(ConfigurationError, match="s3://no-such-bucket/x/y: no such bucket"):
        open_store("s3://no-such-bucket/x").get("y")
    with pytest.raises(ConfigurationError, match="s3://a~b/x/y: not a valid S3 address") as caught:
        open_store("s3://a~b/x").get("y")
    assert "\n" not in str(caught.value)


def test_renewed_credentials_are_taken_up(
    bucket: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar writes new keys into the credentials file; the old ones have expired."""
    keys_used = []

    def plan(request: Request) -> str | None:
        keys_used.append(request.key)
        if request.key == "old":
            file.write_text("[default]\naws_access_key_id=new\naws_secret_access_key=x\n")
            return "expired"
        return None

    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id=old\naws_secret_access_key=x\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "10")
    with proxy(s3_endpoint) as server:
        server.plan = plan
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        renew_client()
        store = open_store(bucket)
        store.put("x", b"1")
        assert keys_used == ["old", "new"]
    renew_client()


def test_a_password_in_an_endpoint_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@bad host:9")
    renew_client()
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL: is not HOST") as caught:
        open_store("s3://bucket/x").get("y")
    assert "hunter2" not in str(caught.value)
    renew_client()


def test_the_region_of_other_sdks_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    renew_client()
    assert s3_client().meta.region_name == "eu-west-1"
    renew_client()


@pytest.fixture
def faulty(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, Store]]:
    """A store behind a proxy."""
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "2")
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        store = open_store(f"{bucket}/some/prefix")
        store.put("object", b"0123456789")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        renew_client()
        yield server, store
    renew_client()


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_a_redirect_is_named_and_not_followed(status: str, faulty: tuple[Proxy, Store]) -> None:
    server, store = faulty
    server.plan = lambda request: status
    for ask in (lambda: store.get("object"), lambda: list(store.list())):
        with pytest.raises(ConfigurationError) as raised:
            ask()
        text = str(raised.value)
        assert f"{server.endpoint} redirects to https://store.invalid; give that in" in text
        assert "secret" not in text


@pytest.mark.parametrize("fault", ["drip", "drip head"])
def test_a_drip_ends_with_the_deadline(fault: str, faulty: tuple[Proxy, Store]) -> None:
    """A byte now and then is no answer, whether of the head or of the body."""
    server, store = faulty
    server.plan = lambda request: fault
    for ask in (lambda: store.get("object"), lambda: list(store.list())):
        began = time.monotonic()
        with pytest.raises(InfrastructureError, match=r"gives no whole answer within \d s"):
            ask()
        assert time.monotonic() - began < 6
    server.plan = lambda request: None
    assert store.get("object") == b"0123456789"


def test_a_drip_is_noticed_by_each_process(faulty: tuple[Proxy, Store]) -> None:
    server, store = faulty
    assert store.get("object")  # the monitor has a thread in this process
    server.plan = lambda request: "drip"

    def read() -> None:
        with contextlib.suppress(InfrastructureError):
            store.get("object")
            os._exit(1)

    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    child.join(8)
    assert child.exitcode == 0


@pytest.mark.parametrize("status", ["507", "522", "500"])
def test_every_fault_of_a_server_may_pass(status: str, faulty: tuple[Proxy, Store]) -> None:
    server, store = faulty
    server.plan = lambda request: status if request.number == 1 else None
    assert store.get("object") == b"0123456789"
    server.plan = lambda request: status
    with pytest.raises(InfrastructureError, match=f"the store answers {status}"):
        store.get("object")


def test_answers_of_proxies_are_told_from_those_of_s3(faulty: tuple[Proxy, Store]) -> None:
    server, store = faulty
    server.plan = lambda request: "chunked"
    assert store.get("object") == b"0123456789"
    assert store.get("object", 2, 5) == b"234"
    server.plan = lambda request: "whole"  # the range is ignored
    assert store.get("object", 2, 5) == b"234"
    for fault in ("html", "blank"):
        server.plan = lambda request, fault=fault: fault  # type: ignore[misc]
        for ask in (lambda: list(store.list()), lambda: store.put("new", b"x")):
            with pytest.raises(InfrastructureError, match="as S3 does|answers 500"):
                ask()
        with pytest.raises(InfrastructureError, match="as S3 does|answers 500"):
            store.put_if_absent("newer", b"x")
    server.plan = lambda request: None
    assert keys(store) == ["object"]


def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_store(f"{tmp_path}/run").put("a/b", b"x")
        assert open_store(f"{tmp_path}/run").put_if_absent("a/c", b"x")
    finally:
        os.umask(before)
    for name in ("a/b", "a/c"):
        assert (tmp_path / "run" / name).stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ObjectMissing):
        open_store(str(tmp_path)).get("pipe")


@pytest.mark.parametrize("uri", ["a\0b", "s3://b/\x07", "s3://bucket/caf\udce9", "file:///\n"])
def test_addresses_hold_no_control_characters(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="holds characters that no address may hold"):
        open_store(uri)
    with pytest.raises(ConfigurationError):
        read_uri(f"{uri}/x")


def test_a_check_before_a_write_does_not_lift_its_deadline(faulty: tuple[Proxy, Store]) -> None:
    """The check makes requests of its own, within the one that is limited."""
    server, store = faulty
    server.plan = lambda request: "drip head" if request.conditional else None
    began = time.monotonic()
    with pytest.raises(InfrastructureError):
        store.put_if_absent("new", b"x", lambda: print(keys(store)))
    assert time.monotonic() - began < 6


def test_a_file_that_is_deleted_while_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    for name in "abc":
        store.put(name, name.encode())
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path.name == "b":
            path.unlink(missing_ok=True)
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert [(info.key, info.size) for info in store.list()] == [("a", 1), ("c", 1)]


def test_folders_that_are_opened_leave_no_descriptors(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("folder/object", b"x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(ObjectMissing):
            store.get("folder")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


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
