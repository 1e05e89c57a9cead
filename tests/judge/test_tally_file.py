"""A tally comes back from its file, and a damaged file is refused."""

import io
import zipfile

import numpy as np
import pytest

from tests.judge.test_judgment import predictions, tally_of
from worker.judge.paired import RIGHT, Outcomes
from worker.judge.tally import Tally
from worker.judge.tally_file import decode_tally, encode_tally

OUTCOMES: Outcomes = np.full(9, RIGHT, np.uint8)


def example() -> Tally:
    return tally_of(*predictions(60, 4, seed=6))


def test_a_tally_comes_back() -> None:
    tally = example()
    found, outcomes = decode_tally(encode_tally(tally, OUTCOMES), 4)
    for name in ("rows", "histograms", "reliability", "sums"):
        assert np.array_equal(getattr(found, name), getattr(tally, name))
    assert np.array_equal(outcomes, OUTCOMES)


def altered(**arrays: np.ndarray) -> bytes:
    fields = {name: getattr(example(), name) for name in ("rows", "histograms", "reliability")}
    fields |= {"sums": example().sums, "outcomes": OUTCOMES}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **(fields | arrays))
    return buffer.getvalue()


def huge() -> bytes:
    """A small file that would unpack to 2 GiB."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("rows.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(2048):
            member.write(bytes(1 << 20))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\3\4 no archive",
        encode_tally(example(), OUTCOMES)[:-40],
        altered(rows=np.array([[0, 9, 1]])),
        altered(rows=np.array([[0, 1, -1]])),
        altered(sums=np.zeros(3, np.int64)),
        altered(histograms=np.zeros((3, 2, 8), np.int64)),
        altered(outcomes=np.array([7], np.uint8)),
        altered(sums=np.array([object()] * 6)),
        huge(),
    ],
)
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        decode_tally(data, 4)
