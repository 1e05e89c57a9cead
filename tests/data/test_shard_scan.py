"""Tars are scanned member by member; malformed ones are described."""

import tracemalloc

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.tars import SIZE, WHOLE, flip, image, labeled, scan, tar
from worker.data import tar_members as tar_module


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
        (tar([("ants/k.jpg", image())]), 0, "if folders are the classes, unpack the tar", 0),
        (tar([("k.cls", b"1")]), 0, "sample 'k' has no .jpg", 0),
        (tar([("k.cls", b" "), ("k.jpg", image())]), 0, "sample 'k' has an empty .cls", 0),
        (tar([("k.cls", b"1"), ("k.jpg", b"")]), 0, "'k.jpg', which is not a JPEG", 0),
        (tar([("k.cls", b"1"), ("k.jpg", b"<html>")]), 0, "'k.jpg', which is not a JPEG", 0),
        (tar([("k.json", b"{"), ("k.jpg", image())]), 0, "a .json that is not JSON", 0),
        (tar([("k.json", b"[]"), ("k.jpg", image())]), 0, "a .json without a string or", 0),
        (tar([("k.cls", b"1"), ("k.cls", b"1"), ("k.jpg", image())]), 0, "two .cls members", 0),
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


def test_a_key_that_comes_twice_is_reported() -> None:
    found = scan(tar([*labeled(3), *labeled(1)]))
    assert len(found.rows) == 3
    assert "sample '0000' also occurs earlier" in found.problems[0].text


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


def pax(kind: bytes = b"x", /, **records: str) -> bytes:
    """A pax header with these records; kind g is a global one."""
    lines = b""
    for key, value in records.items():
        text = f" {key}={value}\n"
        length = len(text) + len(str(len(text) + 2))
        lines += f"{length}{text}".encode()
    return header("x", len(lines), kind) + lines.ljust(-(-len(lines) // 512) * 512, b"\0")


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_global_header_between_members_is_covered_by_the_digest(at: int) -> None:
    """No byte that a reader gets for a sample may go unverified."""
    members = [tar([member]).rstrip(b"\0") for member in labeled(2)]
    members = [data.ljust(-(-len(data) // 512) * 512, b"\0") for data in members]
    members.insert(at, pax(b"g", comment="by another tool"))
    data = b"".join(members) + bytes(1024)
    found = scan(data)
    assert not found.problems
    assert len(found.rows) == 2
    for row in found.rows:
        part = data[row.offset : row.offset + row.length]
        assert row.digest == xxhash.xxh3_64_intdigest(part)
        assert part[row.image_offset :][: row.image_length].startswith(b"\xff\xd8")


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
        "metadata file": 2,
        "hidden file": 1,
        "suffixless file": 1,
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
