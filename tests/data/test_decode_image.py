"""Every kind of image is decoded upright, in RGB and within limits."""

import base64
import io
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from tests.support.encoding import LIMIT, encoded, gradient, pixels
from tests.support.examples import examples
from worker.data.decode_image import ImageSpec, decode, orientation
from worker.data.reader import BadSample


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("JPEG", mode) for mode in ("RGB", "L", "1", "CMYK")),
        *(("PNG", mode) for mode in ("RGB", "L", "P", "1", "RGBA", "LA")),
        *(("WEBP", mode) for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK")),
    ],
)
def test_modes_are_read_as_pillow_reads_them(mode: str, kind: str) -> None:
    data = encoded(gradient().convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    found = pixels(data)
    assert found.shape == (40, 60, 3)
    assert np.abs(found - expected).mean() < 0.5


def test_sixteen_bits_are_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.arange(600, dtype=np.uint16).reshape(20, 30) << 6
    data = encoded(Image.fromarray(ramp), "PNG", exif=exif.tobytes())
    assert np.array_equal(pixels(data)[..., 0], np.rot90(ramp >> 8, -1))


def test_a_bomb_of_a_webp_takes_no_memory() -> None:
    canvas = (16383).to_bytes(3, "little") * 2
    chunk = b"VP8X" + (10).to_bytes(4, "little") + b"\0\0\0\0" + canvas
    data = memoryview(b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk)
    tracemalloc.start()
    with pytest.raises(BadSample, match="16384 x 16384 pixels") as raised:
        decode(data, LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert raised.value.reason == "too_large"
    assert peak < 1_000_000


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}, {"exif": b"x"}])
def test_the_size_of_every_kind_of_webp_is_known(options: dict[str, object]) -> None:
    data = encoded(gradient(70, 50), "WEBP", **options)
    assert decode(data, ImageSpec(3500)).shape == (3, 70, 50)
    with pytest.raises(BadSample, match="50 x 70 pixels"):
        decode(data, ImageSpec(3499))


def test_sixteen_bits_keep_the_upper_eight() -> None:
    ramp = np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint16)
    found = pixels(encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(found[..., 0], ramp >> 8)
    assert np.array_equal(found[..., 0], found[..., 2])


def test_cmyk_colors_are_not_inverted() -> None:
    red = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 255, 255, 0)])
    assert pixels(encoded(red, "JPEG", quality=95))[8, 8].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(), kind, exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB")).astype(int)
    found = pixels(data)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.5


def test_a_picture_of_twenty_megapixels() -> None:
    data = encoded(gradient(4000, 5000), "JPEG")
    assert decode(data, LIMIT).shape == (3, 4000, 5000)
    assert decode(encoded(gradient(), "JPEG"), LIMIT).shape == (3, 40, 60)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_bomb_is_refused_before_it_is_unpacked(kind: str) -> None:
    data = encoded(gradient(300, 400), kind)
    assert decode(data, ImageSpec(120_000)).shape == (3, 300, 400)
    with pytest.raises(BadSample, match="has 400 x 300 pixels; data.max_pixels allows") as raised:
        decode(data, ImageSpec(119_999))
    assert raised.value.reason == "too_large"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"<html>",
    ],
    ids=["half", "start", "empty", "html"],
)
def test_what_is_no_whole_picture_is_bad(harm: Callable[[bytes], bytes], kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    data = harm(bytes(encoded(Image.fromarray(noise), kind)))
    with pytest.raises(BadSample) as raised:
        decode(memoryview(data), LIMIT)
    assert raised.value.reason == "undecodable"


@examples(500)
@given(st.sampled_from(["JPEG", "WEBP"]), st.data())
def test_noise_never_crashes(kind: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a maker", 72.5
    whole = bytearray(encoded(gradient(), kind, exif=exif.tobytes()))
    for _ in range(3):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(memoryview(whole), LIMIT)
    except BadSample:
        return
    assert image.shape[0] == 3


def test_a_jpeg_that_only_warns_is_taken() -> None:
    """As Pillow and so everybody's pictures are; libjpeg's strict reading would refuse it."""
    whole = bytes(encoded(gradient(), "JPEG"))
    for at in range(len(whole) - 60, len(whole) - 2):
        data = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
        try:
            simplejpeg.decode_jpeg(data)
        except ValueError:
            assert pixels(memoryview(data)).shape == (40, 60, 3)
            return
    pytest.fail("no byte made libjpeg complain")


# cjpeg -quality 30 -optimize -sample 1x4 of a gradient: 4:4:1, as a turned 4:1:1 has it.
SAMPLED_4_4_1 = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQ"
    "c1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSk"
    "pKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/wAARCAAgABADARQAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAA"
    "BAX/xAAcEAACAgIDAAAAAAAAAAAAAAAAAwECETEEEmH/xAAXAQADAQAAAAAAAAAAAAAAAAACAwQF/8QAGxEAAgMA"
    "AwAAAAAAAAAAAAAAAAIBAwQREjH/2gAMAwEAAhEDEQA/AIalDEqGIUN46tCEbsT16SOpXg5KhlKdYjG5FLXm4TNW"
    "s8eyaNWmT//Z"
)


def test_what_one_decoder_cannot_decode_is_left_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Image.open(io.BytesIO(SAMPLED_4_4_1)) as picture:
        expected = np.asarray(picture.convert("RGB")).astype(int)
    assert np.array_equal(pixels(memoryview(SAMPLED_4_4_1)), expected)
    data = encoded(gradient(), "JPEG")
    expected = pixels(data)
    for error in (KeyError("4:4:1"), OverflowError(), MemoryError(), SystemError()):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(simplejpeg, "decode_jpeg", fail)
            assert np.array_equal(pixels(data), expected)
            patch.setattr(Image, "open", fail)
            with pytest.raises(BadSample, match="cannot be decoded"):
                decode(data, LIMIT)


def inserted(data: bytes, segment: bytes) -> memoryview:
    """A JPEG with something between its start and its first segment."""
    return memoryview(data[:2] + segment + data[2:])


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
        f'tiff:Orientation="{orientation}"/></x:xmpmeta>'
    ).encode()


def turned_like_pillow(data: memoryview) -> bool:
    """Whether decoding turns a picture as `exif_transpose` does, which must turn it."""
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB")).astype(int)
    found = pixels(data)
    assert expected.shape == (60, 40, 3)
    return found.shape == expected.shape and bool(np.abs(found - expected).mean() < 0.5)


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff" * 5,
        b"\xff\xdb\x00\x43\x01" + bytes(range(1, 65)),
        b"\xff\xfe\x00\x06abcd",
        b"\xff\xe1\x00\x0aNotExif\0",
        b"\xff\xed\x00\x04\0\0",
    ],
    ids=["fill", "dqt", "comment", "other app1", "app13"],
)
def test_orientation_is_found_behind_other_segments(segment: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytes(encoded(gradient(), "JPEG", exif=exif.tobytes()))
    assert turned_like_pillow(inserted(data, segment))


@examples(300)  # without a deadline, which a busy machine misses
@given(st.binary(max_size=80), st.integers(0, 700), st.integers(0, 255), st.booleans())
def test_orientation_is_what_pillow_finds_whatever_the_segments(
    segment: bytes, place: int, value: int, turned: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif.tobytes()} if turned else {"xmp": xmp(8)}
    data = bytearray(inserted(bytes(encoded(gradient(), "JPEG", **options)), segment))
    data[place % len(data)] = value
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            expected = image.getexif().get(0x0112)
    except Exception:
        expected = 1
    valid = isinstance(expected, int) and 1 <= expected <= 8
    assert orientation(memoryview(data)) == (expected if valid else 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_in_xmp_alone_counts_for_every_format(kind: str) -> None:
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp(8).decode())
        data = encoded(gradient(), kind, pnginfo=info)
    else:
        data = encoded(gradient(), kind, xmp=xmp(8))
    assert turned_like_pillow(data)


def test_a_jpeg_of_many_scans_is_refused_before_it_takes_its_time() -> None:
    data = bytes(encoded(gradient(400, 400), "JPEG", progressive=True))
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    bomb = memoryview(data[:-2] + scan * 200 + b"\xff\xd9")
    with pytest.raises(BadSample, match="scans of 160000 pixels, too slow to decode") as raised:
        decode(bomb, LIMIT)
    assert raised.value.reason == "too_large"
    assert decode(memoryview(data), LIMIT).shape == (3, 400, 400)
