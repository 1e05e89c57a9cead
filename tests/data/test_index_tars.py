"""`worker index` on tars of any layout, interrupted and run again."""

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from tests.support.processes import Job, Run, Write
from tests.support.stores import contents, keys, labels_of, open_index, open_reader
from tests.support.tars import WHOLE, image, labeled, put, tar
from worker.data import tar_source
from worker.store import open_store


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
    assert "already holds a data set" in again.err
    ended = run("index", f"{tmp_path}/x-{{000..009}}.tar", "--overwrite")
    assert ended.code == 78
    assert "x-003.tar: no such object, and 6 more are missing" in ended.err
    assert run("index", str(tmp_path), "--overwrite", *options).code == 0
    assert labels_of(str(tmp_path)) == [2, 1, 0]


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
    data: Callable[[bytes], bytes], kind: str, run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    tars = tmp_path / "tars"
    put(str(tars), a=data(tar(labeled(3))))
    refused = run("index", str(tars))
    assert refused.code == 65
    assert f"a.tar: byte 0: is compressed ({kind}); unpack it to a plain .tar first" in refused.err
    (tars / "a.tar").rename(tars / "a.tar.gz")
    refused = run("index", str(tars))
    there = "but a.tar.gz, which is compressed; unpack it to a plain .tar first"
    assert f"holds no .tar, {there}" in refused.err
    assert f"holds no class folders, {there}" in run("pack", str(tars), f"{tmp_path}/set").err
    job["data"]["train"] = str(tars)
    assert f"index.json: no such object, {there}" in run("plan", write(job)).err
    put(str(tars / "train"), b=tar(labeled(3)))
    packed = run("pack", str(tars), f"{tmp_path}/set", "--dry-run")
    put(str(tars), b=tar(labeled(3)))
    indexed = run("index", str(tars))
    for ended in (packed, indexed):
        assert ended.code == 0, ended.err
        assert "left out: 1 compressed archive, such as a.tar.gz; unpack to plain" in ended.err


def test_links_are_named_with_their_remedy(run: Run, tmp_path: Path) -> None:
    """GNU tar archives a file that it has met before as a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for key, kind in (("a", tarfile.LNKTYPE), ("b", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(f"{key}.jpg")
            link.type, link.linkname = kind, "elsewhere.jpg"
            file.addfile(link)
            label = tarfile.TarInfo(f"{key}.cls")
            label.size = 1
            file.addfile(label, io.BytesIO(b"0"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    told = run("index", str(tmp_path)).err
    for key in "ab":
        assert f"sample '{key}' has no .jpg, .jpeg, .jpe, .jfif, .png or .webp, only .cls, " in told
        assert f"and the link '{key}.jpg'; archive the files themselves (tar --dereference" in told


def test_what_samples_have_in_common_is_counted(run: Run, tmp_path: Path) -> None:
    members = [(f"{n}.{kind}", b"0") for n in range(30) for kind in ("cls", "tif")]
    put(str(tmp_path), a=tar([*labeled(3), *members]))
    told = run("index", str(tmp_path)).err
    assert re.search(r"30 samples: has no .*, only .cls, .tif; convert it to JPEG or PNG", told)
    assert "and 10 more" in told


def test_a_folder_of_images_leads_to_pack(run: Run, pictures: Path) -> None:
    assert "holds no .tar, but images; pack them into shards" in run("index", str(pictures)).err


class Interrupted(BaseException):
    """As Ctrl-C would."""


def test_an_interrupted_run_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.data.index_tars import index_tars
    from worker.data.tar_source import find_tars

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


def test_classes_without_images_are_named(run: Run, tmp_path: Path) -> None:
    put(str(tmp_path), a=tar(labeled(6, label=lambda n: str(n * 2))))
    ended = run("index", str(tmp_path))
    assert ended.code == 0
    assert "classes without any images: 1, 3\n" in ended.err


def test_an_endless_pattern_is_refused(run: Run, tmp_path: Path) -> None:
    ended = run("index", f"{tmp_path}/x-{{000..99999999999}}.tar")
    assert ended.code == 78
    assert "names 100000000000 shards; at most 1000000" in ended.err


def test_numbers_and_names_do_not_mix(run: Run, tmp_path: Path) -> None:
    put(str(tmp_path), a=tar(labeled(6, label=lambda n: str(n - 1))))
    ended = run("index", str(tmp_path))
    assert ended.code == 65
    assert "some labels are class numbers (0) and some are not (-1)" in ended.err


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
    assert "holds 3 samples, but the wids index says 4" in ended.err
    entries[0]["filesize"] += 1
    listing.write_text(json.dumps({"wids_version": 1, "shardlist": entries}))
    assert run("index", str(listing), "--overwrite").code == 65
    listing.write_text("{}")
    assert "not a wids index" in run("index", str(listing), "--overwrite").err


def test_a_place_without_tars_says_where_there_are_some(run: Run, tmp_path: Path) -> None:
    put(f"{tmp_path}/train", a=WHOLE)
    ended = run("index", str(tmp_path))
    assert ended.code == 78
    assert "holds no .tar; there are some in train: index each" in ended.err


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
        source = tar_source.find_tars(str(tmp_path))
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
