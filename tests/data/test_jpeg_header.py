"""What the header of a JPEG tells before it is decoded."""

from typing import Any

import pytest

from tests.support.encoding import encoded, gradient
from worker.data.jpeg_header import count_scans, read_header


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0, "quality": 95},
        {"optimize": True},
        {
            "exif": b"Exif\0\0MM\0*" + bytes(500),
            "icc_profile": bytes(70_000),
            "comment": b"\xff\xda",
        },
    ],
    ids=["plain", "4:4:4", "optimized", "segments"],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_ordinary_jpeg_is_searched_in_its_header_alone(mode: str, options: Any) -> None:
    """To go through all of it costs half as much as to decode it."""
    data = encoded(gradient(400, 400).convert(mode), "JPEG", **options)
    header = read_header(data)
    assert header
    assert header.one_scan
    assert bytes(data).count(b"\xff\xda", header.size) == 1
    assert count_scans(data) == 1


def test_the_scans_of_a_progressive_jpeg_are_counted() -> None:
    data = encoded(gradient(400, 400), "JPEG", progressive=True)
    header = read_header(data)
    assert header
    assert not header.one_scan
    assert count_scans(data) == bytes(data).count(b"\xff\xda") > 5
