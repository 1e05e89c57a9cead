"""`worker index`: existing tars of the common layouts, and every way in which one can be broken."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.examples import examples
from tests.support.processes import Run
from tests.support.stores import contents, keys, labels_of, open_index, open_reader
from worker.data import shard_scan as shard_module
from worker.data import tar_members as tar_module
from worker.data.shard_scan import scan_shard
from worker.store import open_store

Members = list[tuple[str, bytes]]


def image(kind: str = "JPEG", shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade % 256, 0, 99)).save(buffer, kind)
    return buffer.getvalue()


def tar(members: Members, form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def labeled(count: int, first: int = 0, label: Callable[[int], str] = str) -> Members:
    return [
        member
        for n in range(first, first + count)
        for member in ((f"{n:04d}.cls", label(n % 3).encode()), (f"{n:04d}.jpg", image(shade=n)))
    ]


def put(uri: str, **shards: bytes) -> None:
    for name, data in shards.items():
        open_store(uri).put(f"{name}.tar", data)


def scan(data: bytes) -> shard_module.Scan:
    return scan_shard(lambda start, stop: data[start:stop], len(data))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_layouts_are_read(form: int, run: Run, bucket: str) -> None:
    deep = "a-very-long-folder-name/" * 9
    put(
        f"{bucket}/set",
        a=tar(
            [
                ("x.jpg", image()),
                ("x.cls", b"cat\n"),
                ("dir/y.JPEG", image()),
                ("dir/y.json", b'{"label": "dog", "more": 1}'),
                ("README", b"belongs to no sample"),
            ],
            form,
        ),
        b=tar(
            [
                (f"{'' if form == tarfile.USTAR_FORMAT else deep}z.png", image("PNG")),
                (f"{'' if form == tarfile.USTAR_FORMAT else deep}z.cls", b"cat"),
                ("w.webp", image("WEBP")),
                ("w.txt", b"a caption"),
                ("w.cls", b"ant"),
            ],
            form,
        ),
    )
    ended = run("index", f"{bucket}/set/")
    assert (ended.code, ended.out) == (0, f"{bucket}/set/: 4 images of 3 classes in 2 shards\n")
    assert open_index(f"{bucket}/set").classes == ("ant", "cat", "dog")
    assert labels_of(f"{bucket}/set") == [1, 2, 1, 0]
    reader = open_reader(f"{bucket}/set")
    assert bytes(reader.read(2).image) == image("PNG")
    assert "sample 1" in reader.name(3)
    assert "(w)" in reader.name(3)
    assert not [key for key in keys(open_store(f"{bucket}/set")) if "scan" in key]


def test_shards_of_webdataset_itself(run: Run, tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for n in range(5):
            writer.write({"__key__": f"{n}", "jpg": image(shade=n), "json": {"label": n}})
    assert run("index", str(tmp_path)).code == 0
    assert labels_of(str(tmp_path)) == [0, 1, 2, 3, 4]
    assert open_index(str(tmp_path)).classes == ("0", "1", "2", "3", "4")


def test_fields_classes_and_patterns(run: Run, tmp_path: Path) -> None:
    for n in range(3):
        put(
            str(tmp_path),
            **{f"x-{n:03d}": tar([("k.jpg", image()), ("k.json", b'{"wnid": "n0%d"}' % n)])},
        )
    (tmp_path / "names.txt").write_text("n02\nn01\nn00\n")
    options = ("--label-field", "wnid", "--classes", str(tmp_path / "names.txt"))
    pattern = f"{tmp_path}/x-{{000..001}}.tar"
    assert run("index", pattern, *options).code == 0
    assert labels_of(str(tmp_path)) == [2, 1]
    again = run("index", pattern, *options)
    assert again.code == 78
    assert "holds a data set already" in again.err
    ended = run("index", f"{tmp_path}/x-{{000..009}}.tar", "--overwrite")
    assert ended.code == 78
    assert "x-003.tar: no such object, nor are 6 more" in ended.err
    assert run("index", str(tmp_path), "--overwrite", *options).code == 0
    assert labels_of(str(tmp_path)) == [2, 1, 0]


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WHOLE = tar(labeled(4))
SIZE = scan(WHOLE).rows[0].length


@pytest.mark.parametrize(
    ("data", "offset", "complaint", "sound"),
    [
        (WHOLE[: 2 * SIZE], 2 * SIZE, "no end-of-archive mark: cut between two samples", 2),
        (WHOLE[: 2 * SIZE + 100], 2 * SIZE, "a tar header cut short", 2),
        (WHOLE[: 2 * SIZE + 1600], 2 * SIZE, "member '0002.jpg' is cut short", 2),
        (flip(WHOLE, 2 * SIZE + 3), 2 * SIZE, "no tar header", 2),
        (WHOLE[: 2 * SIZE] + bytes(512) + WHOLE[2 * SIZE :], 2 * SIZE + 512, "data after the", 2),
        (b"", 0, "empty file", 0),
        (bytes(10240), 0, "holds no samples", 0),
        (b"<html>not found</html>" * 99, 0, "no tar header", 0),
        (tar([("k.jpg", image())]), 0, "sample 'k' has no label", 0),
        (tar([("k.cls", b"1")]), 0, "sample 'k' has no .jpg", 0),
        (tar([("k.cls", b" "), ("k.jpg", image())]), 0, "sample 'k' has an empty .cls", 0),
        (tar([("k.cls", b"1"), ("k.jpg", b"")]), 0, "'k.jpg', which is not a JPEG", 0),
        (tar([("k.cls", b"1"), ("k.jpg", b"<html>")]), 0, "'k.jpg', which is not a JPEG", 0),
        (tar([("k.json", b"{"), ("k.jpg", image())]), 0, "a .json that is not JSON", 0),
        (tar([("k.json", b"[]"), ("k.jpg", image())]), 0, "a .json without a text or", 0),
        (tar([("k.cls", b"1"), ("k.cls", b"1"), ("k.jpg", image())]), 0, "two members .cls", 0),
    ],
)
def test_malformed_shards_are_described(
    data: bytes, offset: int, complaint: str, sound: int
) -> None:
    found = scan(data)
    assert len(found.rows) == sound
    (problem,) = found.problems
    assert complaint in problem.text
    assert problem.offset == offset


@examples(300)
@given(st.integers(0, len(WHOLE) - 1))
def test_no_cut_goes_unnoticed(at: int) -> None:
    end = scan(WHOLE).rows[-1].offset + scan(WHOLE).rows[-1].length
    found = scan(WHOLE[:at])
    if at >= end + 512:  # into the padding of zeros, where nothing is lost
        assert len(found.rows) == 4
    else:
        assert found.problems
        assert all(row in scan(WHOLE).rows for row in found.rows)


@examples(60)
@given(st.integers(1, 2000))
def test_the_size_of_the_chunks_does_not_matter(chunk: int) -> None:
    expected = scan(WHOLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_module, "CHUNK_BYTES", chunk)
        assert scan(WHOLE) == expected


def test_too_much_that_is_malformed_ends_with_65(run: Run, bucket: str) -> None:
    bad = labeled(1)[1:] + labeled(8, first=1)
    put(f"{bucket}/set", a=tar(labeled(9)), b=tar(bad))
    refused = run("index", f"{bucket}/set/")
    assert refused.code == 65
    assert "1 problem, more than --error-budget 0 allows; no index was written" in refused.err
    assert f"{bucket}/set/b.tar: byte 0: sample '0000' has no label" in refused.err
    assert "index.json" not in keys(open_store(f"{bucket}/set"))
    taken = run("index", f"{bucket}/set/", "--error-budget", "0.1")
    assert (taken.code, open_index(f"{bucket}/set").samples) == (0, 17)
    assert "left out:" in taken.err
    assert "sample '0000' has no label" in taken.err


def test_images_are_decoded_if_asked_for(run: Run, bucket: str) -> None:
    cut = ("0003.jpg", image()[:-200])
    members = labeled(9)
    put(f"{bucket}/set", a=tar([cut if name == "0003.jpg" else (name, d) for name, d in members]))
    assert run("index", f"{bucket}/set/").code == 0
    refused = run("index", f"{bucket}/set/", "--decode", "--overwrite")
    assert refused.code == 65
    assert "sample '0003' has an image that cannot be decoded" in refused.err
    taken = run("index", f"{bucket}/set/", "--decode", "--overwrite", "--error-budget", "0.2")
    assert (taken.code, open_index(f"{bucket}/set").samples) == (0, 8)


@pytest.mark.parametrize(
    ("data", "kind"),
    [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")],
)
def test_a_compressed_shard_is_named(
    data: Callable[[bytes], bytes], kind: str, run: Run, tmp_path: Path
) -> None:
    put(str(tmp_path), a=data(tar(labeled(3))))
    refused = run("index", str(tmp_path))
    assert refused.code == 65
    assert f"a.tar: byte 0: is compressed ({kind}); unpack it to a plain .tar first" in refused.err
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    refused = run("index", str(tmp_path))
    assert "holds no .tar, but a.tar.gz, which is compressed; unpack it" in refused.err


def test_a_folder_of_images_leads_to_pack(run: Run, pictures: Path) -> None:
    assert "holds no .tar, but images; make shards of them by" in run("index", str(pictures)).err


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("0000.v2.jpg", "only .cls, .v2.jpg: the first dot of a name ends the key; rename"),
        ("0000.tif", "only .cls, .tif; convert it to JPEG or PNG"),
    ],
)
def test_what_is_there_in_place_of_an_image_is_named(name: str, complaint: str) -> None:
    (problem,) = scan(tar([("0000.cls", b"1"), (name, image())])).problems
    assert complaint in problem.text


def test_jpegs_by_their_other_names_are_taken() -> None:
    for suffix in ("jfif", "jpe"):
        found = scan(tar([("0000.cls", b"1"), (f"0000.{suffix}", image())]))
        assert len(found.rows) == 1


class Interrupted(BaseException):
    """As Ctrl-C would."""


def test_an_interrupted_run_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.data.index_tars import find_tars, index_tars

    put(str(tmp_path), a=tar(labeled(3)), b=tar(labeled(3, 3)), c=tar(labeled(3, 6)))
    source = find_tars(str(tmp_path))
    read: list[str] = []
    get = source.store.get

    def cut(key: str, start: int = 0, stop: int | None = None) -> bytes:
        if key.endswith(".tar"):
            read.append(key)
        if key == "c.tar" and read.count("c.tar") == 1:
            raise Interrupted
        return get(key, start, stop)

    monkeypatch.setattr(source.store, "get", cut)
    with pytest.raises(Interrupted):
        index_tars(
            source,
            None,
            "label",
            error_budget=0,
            threads=1,
            max_pixels=None,
            advance=lambda done: None,
        )
    assert read == ["a.tar", "b.tar", "c.tar"]
    done: list[int] = []
    index_tars(
        source, None, "label", error_budget=0, threads=1, max_pixels=None, advance=done.append
    )
    assert read == ["a.tar", "b.tar", "c.tar", "c.tar"]
    assert sum(done) == sum(
        len(data) for key, data in contents(source.store).items() if key.endswith(".tar")
    )
    assert labels_of(str(tmp_path)) == [0, 1, 2] * 3


def test_a_repaired_shard_is_read_again(run: Run, tmp_path: Path) -> None:
    whole = tar(labeled(4))
    put(str(tmp_path), a=whole.replace(b"0001.cls", b"0001.txt"), b=tar(labeled(4, 4)))
    assert run("index", str(tmp_path)).code == 65
    put(str(tmp_path), a=whole)
    assert run("index", str(tmp_path)).code == 0
    assert open_index(str(tmp_path)).samples == 8


def test_a_staged_file_that_is_broken_is_made_again(run: Run, tmp_path: Path) -> None:
    put(str(tmp_path), a=WHOLE)
    (tmp_path / "a.tar.scan.npz").write_bytes(b"PK\x03\x04 rubbish")
    assert run("index", str(tmp_path)).code == 0
    assert open_index(str(tmp_path)).samples == 4


def test_a_refused_overwrite_harms_nothing(run: Run, tmp_path: Path) -> None:
    put(str(tmp_path), a=WHOLE, b=tar(labeled(4, 4)))
    assert run("index", str(tmp_path)).code == 0
    (tmp_path / "names.txt").write_text("2\n1\n0\n")
    put(str(tmp_path), b=WHOLE[:3000])
    again = run("index", str(tmp_path), "--overwrite", "--classes", f"{tmp_path}/names.txt")
    assert again.code == 65
    put(str(tmp_path), b=tar(labeled(4, 4)))
    assert run("index", str(tmp_path), "--verify").code == 0
    assert labels_of(str(tmp_path)) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_key_that_comes_twice_is_reported() -> None:
    found = scan(tar([*labeled(3), *labeled(1)]))
    assert len(found.rows) == 3
    assert "sample '0000' is there already" in found.problems[0].text


def test_classes_without_images_are_named(run: Run, tmp_path: Path) -> None:
    put(str(tmp_path), a=tar(labeled(6, label=lambda n: str(n * 2))))
    ended = run("index", str(tmp_path))
    assert ended.code == 0
    assert "classes without any image: 1, 3\n" in ended.err


def test_an_endless_pattern_is_refused(run: Run, tmp_path: Path) -> None:
    ended = run("index", f"{tmp_path}/x-{{000..99999999999}}.tar")
    assert ended.code == 78
    assert "names 100000000000 shards; at most 1000000" in ended.err


def test_numbers_and_names_do_not_mix(run: Run, tmp_path: Path) -> None:
    put(str(tmp_path), a=tar(labeled(6, label=lambda n: str(n - 1))))
    ended = run("index", str(tmp_path))
    assert ended.code == 65
    assert "the labels are class numbers (0) and others (-1)" in ended.err


def test_what_is_no_sample_costs_no_memory() -> None:
    big = tar([("README", bytes(40_000_000)), *labeled(2), ("big.bin", bytes(100))])
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_module, "CHUNK_BYTES", 1 << 20)
        found = scan(big)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(found.rows), len(found.problems)) == (2, 1)  # big.bin is a sample without label
    assert peak < 8_000_000


def test_a_sparse_member_is_named() -> None:
    """As GNU tar writes them: 1024 bytes of data, spread over a file of a megabyte."""
    data = bytearray(tar([("k.cls", b"1"), ("k.jpg", image()), ("k.bin", b"x" * 1024)]))
    at = data.index(b"k.bin")
    data[at + 156] = ord("S")
    data[at + 386 : at + 398] = b"00000000000\0"
    data[at + 398 : at + 410] = b"00000002000\0"
    data[at + 483 : at + 495] = b"00004000000\0"
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    found = scan(bytes(data))
    (problem,) = found.problems
    assert "sample 'k' has 'k.bin', a sparse file" in problem.text


def test_wids_indexes_are_taken_for_what_they_hold(run: Run, tmp_path: Path) -> None:
    put(str(tmp_path), a=tar(labeled(3)), b=tar(labeled(3, 3)), unlisted=tar(labeled(3, 6)))
    entries: list[dict[str, Any]] = [
        {"url": f"{name}.tar", "nsamples": 3, "filesize": (tmp_path / f"{name}.tar").stat().st_size}
        for name in ("b", "a")
    ]
    listing = tmp_path / "wids.json"
    listing.write_text(json.dumps({"wids_version": 1, "shardlist": entries}))
    assert run("index", str(listing)).code == 0
    assert [shard.name for shard in open_index(str(tmp_path)).shards] == ["b.tar", "a.tar"]
    entries[0]["nsamples"] = 4
    listing.write_text(json.dumps({"wids_version": 1, "shardlist": entries}))
    ended = run("index", str(listing), "--overwrite")
    assert ended.code == 65
    assert "b.tar: byte" in ended.err
    assert "holds 3 samples where the older index says 4" in ended.err
    entries[0]["filesize"] += 1
    listing.write_text(json.dumps({"wids_version": 1, "shardlist": entries}))
    assert run("index", str(listing), "--overwrite").code == 65
    listing.write_text("{}")
    assert "no wids index" in run("index", str(listing), "--overwrite").err


def test_a_place_without_tars_says_where_there_are_some(run: Run, tmp_path: Path) -> None:
    put(f"{tmp_path}/train", a=WHOLE)
    ended = run("index", str(tmp_path))
    assert ended.code == 78
    assert "holds no .tar; there are some in train: index each" in ended.err


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda data: flip(data, SIZE + 1500), "1 sample altered or missing, the first at byte"),
        (lambda data: data[: 2 * SIZE], "bytes long where"),
        (lambda data: data + b"x", "longer where"),
        (lambda data: flip(data, len(data) - 5), "no sample is touched"),
        (lambda data: b"", "0 bytes long"),
        (None, "no such file"),
    ],
)
def test_verify_names_what_differs(
    harm: Callable[[bytes], bytes] | None, complaint: str, run: Run, tmp_path: Path
) -> None:
    put(str(tmp_path), a=WHOLE, b=tar(labeled(4, 4)))
    assert run("index", str(tmp_path)).code == 0
    sound = run("index", str(tmp_path), "--verify")
    assert (sound.code, sound.out) == (0, f"{tmp_path.as_uri()}/: 2 shards, all as indexed\n")
    (tmp_path / "a.tar").unlink() if harm is None else put(str(tmp_path), a=harm(WHOLE))
    ended = run("index", str(tmp_path), "--verify")
    assert ended.code == 65
    assert "1 bad shard:" in ended.err
    assert "a.tar: " in ended.err
    assert complaint in ended.err


def header(name: str, size: int, kind: bytes = b"0", raw_size: bytes | None = None) -> bytes:
    """A tar header, whatever sense it makes."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = raw_size or b"%011o\0" % size
    block[136:148], block[156:157], block[257:265] = b"00000000000\0", kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**records: str) -> bytes:
    """A pax header with these records."""
    lines = b""
    for key, value in records.items():
        text = f" {key}={value}\n"
        length = len(text) + len(str(len(text) + 2))
        lines += f"{length}{text}".encode()
    return header("x", len(lines), b"x") + lines.ljust(-(-len(lines) // 512) * 512, b"\0")


NEGATIVE = b"\xff" + ((1 << 88) - 512).to_bytes(11, "big")


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        (header("b.jpg", 0, raw_size=NEGATIVE), "no tar header"),
        (pax(size="-1024") + header("b.jpg", 0), "no tar header"),
        (pax(size="9" * 5000) + header("b.jpg", 0), ""),
        (header("x", 400 << 20, b"x"), "no tar header"),
        (header("x", 400 << 20, b"L"), "no tar header"),
        (pax(comment="y") * 2000 + header("b.jpg", 0), "no tar header"),
        (header("b.jpg", 8 << 40, raw_size=b"\x80" + (1 << 60).to_bytes(11, "big")), "cut short"),
        (
            pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + header("b.jpg", 0),
            "sparse file",
        ),
    ],
)
def test_hostile_headers_end_in_a_problem_and_not_in_memory(block: bytes, complaint: str) -> None:
    data = tar(labeled(1))[:SIZE] + block + bytes(1024)
    tracemalloc.start()
    found = scan(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.rows) == 1
    assert complaint in " ".join(problem.text for problem in found.problems)
    assert peak < 20_000_000


def test_large_members_of_a_sample_cost_no_memory() -> None:
    members = [("a.cls", b"1"), ("a.mp4", bytes(40_000_000)), ("a.jpg", image()), *labeled(1, 7)]
    data = tar(members)
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_module, "CHUNK_BYTES", 1 << 20)
        found = scan(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000
    first = found.rows[0]
    whole = data[first.offset : first.offset + first.length]
    assert xxhash.xxh3_64_intdigest(whole) == first.digest
    assert whole[first.image_offset :][: first.image_length] == image()


def test_members_of_no_sample_are_counted() -> None:
    members = [
        *(("__meta__/x.json", b"{}"), ("__info__", b""), (".DS_Store", b""), ("README", b"")),
        *labeled(1),
    ]
    assert scan(tar(members)).passed_over == {
        "metadata file (__name__)": 2,
        "hidden file": 1,
        "file without a suffix": 1,
    }


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        ("café".encode("latin-1"), r"has a .cls that is not UTF-8 text (byte 3, in b'caf\xe9')"),
        ("cat".encode("utf-16"), r"has a .cls that is not UTF-8 text (byte 0, in b'\xff\xfec"),
        ("cat".encode("utf-16-le"), r"has a label that holds the character U+0000 (in b'c\x00a"),
        (b"\xef\xbb\xbf", "has an empty .cls"),
        (b"1" * 5000, "has a label of 5000 characters"),
        (b"1" * (2 << 20), "has a .cls of 2097152 bytes"),
    ],
)
def test_labels_that_are_no_text_are_refused_by_name(label: bytes, complaint: str) -> None:
    found = scan(tar([("k.cls", label), ("k.jpg", image()), *labeled(1)]))
    assert len(found.rows) == 1
    assert f"sample 'k' {complaint}" in found.problems[0].text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"label": "\\ud800"}', "has a label that holds the character U+D800"),
        ('{"label": "é"}'.encode("utf-16"), "has a .json that is not UTF-8 text"),
        ('{"label": "é"}'.encode("latin-1"), "has a .json that is not UTF-8 text"),
        (b'{"label": ' + b"[" * 100_000, "has a .json that is not JSON"),
        (b'{"label": ' + b"1" * 5000 + b"}", "has a .json that is not JSON"),
        (b'{"label": " "}', "has an empty label"),
    ],
)
def test_json_labels_likewise(text: bytes, complaint: str) -> None:
    found = scan(tar([("k.json", text), ("k.jpg", image())]))
    (problem,) = found.problems
    assert complaint in problem.text


def test_one_class_however_it_is_written(run: Run, tmp_path: Path) -> None:
    labels = ["\ufeffcafé", "cafe\u0301", " café\r\n", "tea"]
    members = [
        (f"{number}.{suffix}", data)
        for number, label in enumerate(labels)
        for suffix, data in (("cls", label.encode()), ("jpg", image(shade=number)))
    ]
    put(str(tmp_path), a=tar(members))
    assert run("index", str(tmp_path)).code == 0
    assert open_index(str(tmp_path)).classes == ("café", "tea")
    assert labels_of(str(tmp_path)) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ("\ufeffa\r\nb \r\n".encode(), 0),
        ("a\nb\n".encode("utf-16"), 78),
        ("a\né\n".encode("latin-1"), 78),
        ("e\u0301\né\n".encode(), 78),
    ],
)
def test_class_lists_are_text(names: bytes, code: int, run: Run, tmp_path: Path) -> None:
    put(str(tmp_path), a=tar(labeled(2, label=lambda n: "ab"[n])))
    (tmp_path / "names.txt").write_bytes(names)
    ended = run("index", str(tmp_path), "--classes", f"{tmp_path}/names.txt")
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err


def test_corrected_labels_of_the_same_size_are_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though an interrupted run has staged what it learned of the shard before."""
    from worker.data import index_tars as indexing

    put(str(tmp_path), a=tar(labeled(3, label=lambda n: "0")))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(indexing, "write_index", lambda *_: (_ for _ in ()).throw(Interrupted))
        source = indexing.find_tars(str(tmp_path))
        indexing.index_tars(
            source,
            None,
            "label",
            error_budget=0,
            threads=1,
            max_pixels=None,
            advance=lambda done: None,
        )
    assert (tmp_path / "a.tar.scan.npz").exists()
    put(str(tmp_path), a=tar(labeled(3, label=lambda n: "2")))
    assert run("index", str(tmp_path)).code == 0
    assert labels_of(str(tmp_path)) == [2, 2, 2]


def test_indexing_a_packed_set_again_keeps_its_class_names(
    run: Run, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset / "train", tmp_path / "set")
    before = labels_of(f"{tmp_path}/set")
    assert run("index", f"{tmp_path}/set", "--overwrite").code == 0
    assert open_index(f"{tmp_path}/set").classes == ("blue", "red")
    assert labels_of(f"{tmp_path}/set") == before


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
