"""Sixteen-bit PNGs of fewer real bits."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.support.encoding import LIMIT, pixels
from tests.support.processes import Run
from tests.support.stores import open_index
from worker.data.decode_image import ImageSpec, decode


def deep_png(samples: np.ndarray, bits: bytes = b"") -> memoryview:
    """A PNG of 16 bits, [H, W] or [H, W, 3], with an sBIT chunk if `bits` are declared."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4)
        return len(data).to_bytes(4) + kind + data + check

    height, width = samples.shape[:2]
    colors = 2 if samples.ndim == 3 else 0
    head = width.to_bytes(4) + height.to_bytes(4) + bytes([16, colors, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    body = chunk(b"IHDR", head) + (chunk(b"sBIT", bits) if bits else b"")
    body += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return memoryview(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("colors", [1, 3])
def test_twelve_bits_in_sixteen_are_not_black(colors: int) -> None:
    ramp = np.linspace(0, 4095, 600).astype(np.uint16).reshape(20, 30)
    raw = ramp if colors == 1 else np.stack([ramp] * 3, axis=2)
    expected = ramp >> 4
    declared = deep_png(raw, bytes([12]) * colors)
    assert np.array_equal(pixels(declared)[..., 0], expected)
    # As the standard wants it: what is declared is scaled up to all 16 bits.
    assert np.array_equal(pixels(deep_png(raw << 4, bytes([12]) * colors))[..., 0], expected)
    undeclared = deep_png(raw)
    known = decode(undeclared, ImageSpec(LIMIT.max_pixels, depth=12))
    assert np.array_equal(known.numpy()[0], expected)
    assert pixels(undeclared).max() == 15  # without the set's range, all 16 bits are taken as used


def test_a_set_of_deep_images_knows_its_range(run: Run, tmp_path: Path) -> None:
    """It is that of the training split, for all splits and for the model."""
    for split, high in (("train", 4095), ("val", 900)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            ramp = np.linspace(0, high, 600).astype(np.uint16).reshape(20, 30)
            (folder / "x.png").write_bytes(deep_png(ramp))
    packed = run("pack", f"{tmp_path}/photos", f"{tmp_path}/set")
    assert packed.code == 0, packed.err
    assert "16-bit images are assumed to use only 12 bits" in packed.out + packed.err
    for split in ("train", "val"):
        assert open_index(f"{tmp_path}/set/{split}").depth == 12
    again = run("index", f"{tmp_path}/set/train", "--overwrite")
    assert again.code == 0, again.err
    assert open_index(f"{tmp_path}/set/train").depth == 12
