"""Files that go by the name of an image are called what they are."""

import io

import pytest
from PIL import Image

from worker.data.image_formats import describe_compressed, not_an_image


@pytest.mark.parametrize(
    ("made_as", "name"),
    [("GIF", "a GIF"), ("TIFF", "a TIFF"), ("BMP", "a BMP"), ("PDF", "a PDF"), ("AVIF", "an AVIF")],
)
def test_what_pillow_writes(made_as: str, name: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, made_as)
    text = not_an_image(file.getvalue()[:32])
    assert text.startswith(f"not a JPEG, PNG or WebP image, but {name}")
    assert text.endswith("; convert it")


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"\0\0\0\x18ftypheic", "but a HEIC image; convert it"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "but a Git LFS pointer; run `git lfs pull`",
        ),
        (b"\n<!doctype html>", "but a web page or XML; download the image itself"),
    ],
)
def test_what_downloads_and_phones_leave(head: bytes, text: str) -> None:
    assert not_an_image(head).endswith(text)


def test_nothing_is_guessed() -> None:
    assert not_an_image(b"\0" * 32) == "not a JPEG, PNG or WebP image"


def test_compressed_archives_are_counted() -> None:
    names = ["a.tar", "b.tar.gz", "c.tgz", "x/d.zip", "e.jpg"]
    assert describe_compressed(names) == [
        "left out: 3 compressed archives, such as b.tar.gz; unpack to plain .tar files first"
    ]
    assert describe_compressed(["a.tar", "b.jpg"]) == []
