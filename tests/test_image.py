"""Every kind of picture becomes upright RGB, or a bad sample that says why."""

import io
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from worker.data.image import decode
from worker.data.reader import BadSample

LIMIT = 100_000_000


def gradient(height: int = 40, width: int = 60) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(picture: Image.Image, kind: str, **options: object) -> memoryview:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return memoryview(buffer.getvalue())


def pixels(data: memoryview) -> np.ndarray:
    image = decode(data, LIMIT)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy().astype(int)


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
    assert decode(data, 3500).shape == (3, 70, 50)
    with pytest.raises(BadSample, match="50 x 70 pixels"):
        decode(data, 3499)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    ramp = np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint16)
    found = pixels(encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(found[..., 0], ramp >> 8)
    assert np.array_equal(found[..., 0], found[..., 2])


def test_cmyk_colours_are_not_inverted() -> None:
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
    assert decode(data, 120_000).shape == (3, 300, 400)
    with pytest.raises(BadSample, match="400 x 300 pixels are more than data.max_pixels") as raised:
        decode(data, 119_999)
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


@settings(max_examples=500, deadline=None)
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
